//! NVMe Qualified Names (NVMe base 2.0c §4.5).
//!
//! This module has two rules. [`Nqn::new`] and [`Nqn::parse`] have the rule for foreign names: of hosts, and of arrays'
//! subsystems. In practice, a foreign name may be any text that somebody once wrote into a file, and Linux's and SPDK's
//! targets accept such a text. [`Nqn::subsystem`] has the stricter rule for our own subsystems: it accepts only names that
//! every host can use.

/// A name of up to 223 bytes, kept in place: UTF-8 without control characters. It may be empty: SPDK's `perf` sends an
/// empty HOSTNQN by default.
#[derive(Clone, Copy)]
pub struct Nqn {
    len: u8,
    bytes: [u8; Self::MAX_LEN],
}

/// The reason why the rules refuse a text as an NQN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// More than 223 bytes.
    #[error("the NQN has more than 223 bytes")]
    TooLong,
    /// A field without the NUL that must end the name.
    #[error("no NUL ends the NQN")]
    NotTerminated,
    /// Not UTF-8, or a control character.
    #[error("byte {at} is a control character or not UTF-8")]
    NotText {
        /// Index of the byte.
        at: usize,
    },
    /// Not `nqn.yyyy-mm.reverse.domain`.
    #[error(
        "a subsystem's NQN has the form nqn.yyyy-mm.reverse.domain:name, such as nqn.2026-01.org.example:disk1"
    )]
    Form,
    /// The UUID form without a UUID.
    #[error(
        "after nqn.2014-08.org.nvmexpress:uuid: there is no UUID of the form 11111111-2222-3333-4444-555555555555"
    )]
    Uuid,
}

const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

impl Nqn {
    /// Most bytes of a name.
    pub const MAX_LEN: usize = 223;
    /// Bytes of a field that holds a name, NUL-terminated and zero-filled.
    pub const FIELD_LEN: usize = 256;

    /// The well-known name of discovery subsystems (NVMe base 2.0c §4.5).
    pub const DISCOVERY: Self = Self::literal("nqn.2014-08.org.nvmexpress.discovery");

    /// Makes a name from a literal. The build fails if the literal is too long.
    const fn literal(text: &str) -> Self {
        let text = text.as_bytes();
        assert!(text.len() <= Self::MAX_LEN);
        let mut bytes = [0; Self::MAX_LEN];
        let mut at = 0;
        while at < text.len() {
            bytes[at] = text[at];
            at += 1;
        }
        Self { len: text.len() as u8, bytes }
    }

    /// Returns `text` as a name, if a host or an array's subsystem may have this name.
    ///
    /// # Errors
    /// An error if `text` is longer than 223 bytes or contains a control character.
    pub fn new(text: &str) -> Result<Self, NqnError> {
        Self::from_bytes(text.as_bytes())
    }

    /// Returns `text` as a name, if our own subsystems may have this name. A name has one of two forms. The first form is
    /// `nqn.`, a year and a month, a reverse domain, and optionally a colon and a name without white space. The second form
    /// is `nqn.2014-08.org.nvmexpress:uuid:` and a UUID.
    ///
    /// # Errors
    /// The fault of the text.
    pub fn subsystem(text: &str) -> Result<Self, NqnError> {
        let nqn = Self::new(text)?;
        check_form(text)?;
        Ok(nqn)
    }

    /// Reads the name in a field of 256 bytes and checks it by the rule of [`Nqn::new`].
    ///
    /// # Errors
    /// The errors of [`Nqn::new`]. Also an error if the field has no NUL, or if the name is not UTF-8.
    pub fn parse(field: &[u8; Self::FIELD_LEN]) -> Result<Self, NqnError> {
        let len = field.iter().position(|&byte| byte == 0).ok_or(NqnError::NotTerminated)?;
        Self::from_bytes(field.get(..len).unwrap_or_default())
    }

    /// Writes every byte of a field.
    pub fn emit(&self, field: &mut [u8; Self::FIELD_LEN]) {
        field.fill(0);
        for (to, from) in field.iter_mut().zip(self.as_bytes()) {
            *to = *from;
        }
    }

    /// Returns the name as a field of 256 bytes.
    pub fn field(&self) -> [u8; Self::FIELD_LEN] {
        let mut field = [0; Self::FIELD_LEN];
        self.emit(&mut field);
        field
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        // Only `from_bytes` and `literal` make an `Nqn`, and both store only UTF-8.
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Returns the name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len as usize).unwrap_or_default()
    }

    /// Returns whether the name is empty. A host that sends an empty name has no name.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether the name is the well-known discovery name.
    pub fn is_discovery(&self) -> bool {
        *self == Self::DISCOVERY
    }

    fn from_bytes(text: &[u8]) -> Result<Self, NqnError> {
        if text.len() > Self::MAX_LEN {
            return Err(NqnError::TooLong);
        }
        let text_of = str::from_utf8(text).map_err(|error| NqnError::NotText { at: error.valid_up_to() })?;
        if let Some((at, _)) = text_of.char_indices().find(|(_, c)| c.is_control()) {
            return Err(NqnError::NotText { at });
        }
        let mut bytes = [0; Self::MAX_LEN];
        for (to, from) in bytes.iter_mut().zip(text) {
            *to = *from;
        }
        Ok(Self { len: text.len() as u8, bytes })
    }
}

fn check_form(text: &str) -> Result<(), NqnError> {
    if let Some(uuid) = text.strip_prefix(UUID_PREFIX) {
        let fits = |(at, byte): (usize, u8)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        };
        let is_uuid = uuid.len() == 36 && uuid.bytes().enumerate().all(fits);
        return if is_uuid { Ok(()) } else { Err(NqnError::Uuid) };
    }
    let [b'n', b'q', b'n', b'.', y0, y1, y2, y3, b'-', m0, m1, b'.', rest @ ..] = text.as_bytes() else {
        return Err(NqnError::Form);
    };
    let is_year = [y0, y1, y2, y3].iter().all(|digit| digit.is_ascii_digit());
    let is_month = matches!((m0, m1), (b'0', b'1'..=b'9') | (b'1', b'0'..=b'2'));
    let is_label =
        |label: &[u8]| !label.is_empty() && label.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
    let domain = rest.split(|byte| *byte == b':').next().unwrap_or_default();
    let is_domain = domain.split(|byte| *byte == b'.').all(is_label);
    if is_year && is_month && is_domain && !text.contains(char::is_whitespace) {
        Ok(())
    } else {
        Err(NqnError::Form)
    }
}

impl PartialEq for Nqn {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Nqn {}

impl PartialOrd for Nqn {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Nqn {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl std::hash::Hash for Nqn {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl std::fmt::Debug for Nqn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.as_str(), f)
    }
}

impl std::fmt::Display for Nqn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Nqn {
    type Err = NqnError;
    fn from_str(text: &str) -> Result<Self, NqnError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-55555555aaFF";

    #[test]
    fn a_subsystem_has_one_of_two_forms() {
        let longest = format!("nqn.2026-01.org.example:{}", "x".repeat(199));
        assert_eq!(longest.len(), Nqn::MAX_LEN);
        for text in [
            UUID,
            &longest,
            "nqn.2014-08.org.nvmexpress.discovery",
            "nqn.2026-12.org.example:größe",
            "nqn.2016-06.io.spdk:cnode1",
            "nqn.2014-08.com.example",
        ] {
            assert_eq!(Nqn::subsystem(text).map(|nqn| nqn.as_str().to_owned()), Ok(text.to_owned()));
        }
        for (text, error) in [
            ("", NqnError::Form),
            ("nqn.", NqnError::Form),
            ("iqn.2014-08.org.example", NqnError::Form),
            ("nqn.2014-8.org.example", NqnError::Form),
            ("nqn.2014-08.", NqnError::Form),
            ("nqn.2026-+1.org.example:t", NqnError::Form),
            ("nqn.2026-00.org.example:t", NqnError::Form),
            ("nqn.2026-13.org.example:t", NqnError::Form),
            ("nqn.+026-01.org.example:t", NqnError::Form),
            ("nqn.20é6-01.org.example:t", NqnError::Form),
            ("nqn.2026-01.org..example:t", NqnError::Form),
            ("nqn.2026-01.org.exämple:t", NqnError::Form),
            ("nqn.2026-01.org.example:a b", NqnError::Form),
            ("nqn.2014-08.org.exa\u{7}mple", NqnError::NotText { at: 19 }),
            ("nqn.2014-08.org.nvmexpress:uuid:1111", NqnError::Uuid),
            ("nqn.2014-08.org.nvmexpress:uuid:07e4a0a641d54bff96b28a173dcfb6b5", NqnError::Uuid),
        ] {
            assert_eq!(Nqn::subsystem(text), Err(error), "{text}");
        }
        assert!(Nqn::subsystem("nqn.2014-08.org.nvmexpress.discovery").unwrap().is_discovery());
    }

    #[test]
    fn a_host_may_have_any_name() {
        let longest = "ö".repeat(111) + "x";
        assert_eq!(longest.len(), Nqn::MAX_LEN);
        for text in [
            "",
            UUID,
            &longest,
            "nqn.2014-08.org.nvmexpress:uuid:07e4a0a641d54bff96b28a173dcfb6b5",
            "2014-08.org.nvmexpress:uuid:07e4a0a6-41d5-4bff-96b2-8a173dcfb6b5",
            "hostnqn1",
            "nqn.2021-13.x:y",
            " with spaces ",
        ] {
            let nqn = Nqn::new(text).unwrap();
            assert_eq!((nqn.as_str(), nqn.is_empty()), (text, text.is_empty()));
            let mut field = [0xff; 256];
            nqn.emit(&mut field);
            assert_eq!(&field[..text.len()], text.as_bytes());
            assert!(field[text.len()..].iter().all(|&byte| byte == 0));
            assert_eq!(Nqn::parse(&field), Ok(nqn));
        }
        assert_eq!(Nqn::new(&"x".repeat(224)), Err(NqnError::TooLong));
        assert_eq!(Nqn::parse(&[b'n'; 256]), Err(NqnError::NotTerminated));
        for (text, at) in [("a\nb", 1), ("\u{7f}", 0), ("ab\u{85}", 2)] {
            assert_eq!(Nqn::new(text), Err(NqnError::NotText { at }), "{text:?}");
        }
        let mut field = [0; 256];
        field[..3].copy_from_slice(b"ab\xff");
        assert_eq!(Nqn::parse(&field), Err(NqnError::NotText { at: 2 }));
    }
}
