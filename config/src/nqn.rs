//! NVMe Qualified Names (NVMe base 2.0c §4.5).

/// The longest NQN, in bytes, without its terminator.
pub const MAX_NQN_BYTES: usize = 223;

const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// Why a text isn't an NQN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// Too long.
    #[error("the NQN is {0} bytes long; NVMe allows 223")]
    Long(usize),
    /// Not of either form.
    #[error(
        "`{0}` is not an NQN: write nqn.yyyy-mm.reverse.domain:name, such as nqn.2026-01.org.example:disk1"
    )]
    Form(String),
    /// `nqn.2014-08.org.nvmexpress:uuid:` without a UUID after it.
    #[error("`{0}` does not end in a UUID of the form 11111111-2222-3333-4444-555555555555")]
    Uuid(String),
}

/// Checks that `nqn` is one of the two forms: a date, a reverse domain and a name, or a UUID.
///
/// # Errors
/// What is wrong with it.
pub fn check_nqn(nqn: &str) -> Result<(), NqnError> {
    if nqn.len() > MAX_NQN_BYTES {
        return Err(NqnError::Long(nqn.len()));
    }
    if let Some(uuid) = nqn.strip_prefix(UUID_PREFIX) {
        let hyphenated = uuid.len() == 36 && uuid::Uuid::try_parse(uuid).is_ok();
        return if hyphenated { Ok(()) } else { Err(NqnError::Uuid(nqn.into())) };
    }
    let form = || NqnError::Form(nqn.into());
    let rest = nqn.strip_prefix("nqn.").ok_or_else(form)?;
    let date = rest.get(..7).ok_or_else(form)?;
    let month_ok = matches!(date.get(5..).and_then(|m| m.parse::<u8>().ok()), Some(1..=12));
    let year_ok = date.bytes().take(4).all(|b| b.is_ascii_digit()) && date.as_bytes().get(4) == Some(&b'-');
    let domain = rest.get(7..).and_then(|d| d.strip_prefix('.')).ok_or_else(form)?;
    let domain = domain.split(':').next().unwrap_or_default();
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let printable = !nqn.chars().any(|c| c.is_whitespace() || c.is_control());
    if !(year_ok && month_ok && printable && domain.split('.').all(label)) {
        return Err(form());
    }
    Ok(())
}

/// The serial number of a subsystem that wasn't given one: `TF` and 16 hexadecimal digits that
/// follow from its NQN, so that it stays the same when the database is lost.
pub fn default_serial(nqn: &str) -> String {
    // FNV-1a: short, and not meant to withstand anyone.
    let hash = nqn
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3));
    format!("TF{hash:016X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_pass() {
        for nqn in [
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "nqn.2026-01.org.example:disk1",
            "nqn.2016-06.io.spdk:cnode1",
            "nqn.2014-08.com.example",
        ] {
            assert_eq!(check_nqn(nqn), Ok(()), "{nqn}");
        }
    }

    #[test]
    fn others_do_not() {
        for nqn in [
            "",
            "nqn.",
            "iqn.2026-01.org.example:x",
            "nqn.2026-13.org.example:x",
            "nqn.2026-01.org..example:x",
            "nqn.2026-01.org.example:a b",
            "nqn.2014-08.org.nvmexpress:uuid:zz",
            "nqn.20é6-01.org.example:x",
        ] {
            assert!(check_nqn(nqn).is_err(), "{nqn}");
        }
        assert_eq!(
            check_nqn(&format!("nqn.2026-01.org.example:{}", "x".repeat(223))),
            Err(NqnError::Long(247))
        );
    }

    #[test]
    fn a_serial_follows_from_the_nqn() {
        assert_eq!(default_serial("a").len(), 18);
        assert_eq!(default_serial("a"), default_serial("a"));
        assert_ne!(default_serial("a"), default_serial("b"));
    }
}
