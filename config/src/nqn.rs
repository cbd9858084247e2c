//! Checks the NVMe Qualified Names in a document. The rules themselves are in [`trefoil_wire::fabrics::Nqn`].

use crate::told::cut;
use trefoil_wire::fabrics::{Nqn, NqnError};

/// Checks the NQN of a subsystem of ours; see [`Nqn::subsystem`].
///
/// # Errors
/// A sentence that describes the fault of the name.
pub fn check_subsystem_nqn(nqn: &str) -> Result<(), String> {
    Nqn::subsystem(nqn).map(drop).map_err(|error| explain(nqn, error))
}

/// Checks a foreign NQN: of a host, or of an array's subsystem; see [`Nqn::new`]. An empty NQN is an error here: a host
/// without a name may connect only where any host may connect, so such a host is on no list.
///
/// # Errors
/// A sentence that describes the fault of the name.
pub fn check_host_nqn(nqn: &str) -> Result<(), String> {
    match Nqn::new(nqn) {
        Ok(nqn) if nqn.is_empty() => Err("the NQN is empty".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(explain(nqn, error)),
    }
}

fn explain(nqn: &str, error: NqnError) -> String {
    format!("`{}` is not an NQN: {error}", cut(nqn))
}

/// Returns the serial number of a subsystem for which the document gives none: `TF` and 16 hexadecimal digits derived from
/// the NQN. So the serial number stays the same when the database is lost.
pub fn default_serial(nqn: &str) -> String {
    // FNV-1a has short code. The hash needs no strength against attacks.
    let hash = nqn
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3));
    format!("TF{hash:016X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_a_part_of_the_name_without_control_characters() {
        let said = check_host_nqn("a\nb").expect_err("a control character");
        assert!(said.starts_with(r"`a\nb` is not an NQN: byte 1 "), "{said}");
        let said = check_subsystem_nqn(&"ö".repeat(300)).expect_err("600 bytes");
        assert_eq!(said, format!("`{}…` is not an NQN: the NQN has more than 223 bytes", "ö".repeat(64)));
        assert!(check_host_nqn("").is_err() && check_subsystem_nqn("").is_err());
        assert!(check_host_nqn("hostnqn1").is_ok() && check_subsystem_nqn("hostnqn1").is_err());
    }

    #[test]
    fn a_serial_follows_from_the_nqn() {
        assert_eq!(default_serial("a").len(), 18);
        assert_eq!(default_serial("a"), default_serial("a"));
        assert_ne!(default_serial("a"), default_serial("b"));
    }
}
