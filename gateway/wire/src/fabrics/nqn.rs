//! NVMe Qualified Names (NVMe base 2.0c §4.5).

/// A valid NQN of up to 223 bytes, kept in place.
///
/// Valid means: 1 to 223 bytes of UTF-8 without NUL or control characters, `nqn.yyyy-mm.` and a reverse domain, or the
/// UUID form `nqn.2014-08.org.nvmexpress:uuid:` and 36 characters.
#[derive(Clone, Copy)]
pub struct Nqn {
    len: u8,
    bytes: [u8; Self::MAX_LEN],
}

/// Why a text is not an NQN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// No bytes.
    #[error("NQN is empty")]
    Empty,
    /// More than 223 bytes.
    #[error("NQN exceeds 223 bytes")]
    TooLong,
    /// A field without the NUL that must end it.
    #[error("NQN field has no terminating NUL")]
    NotTerminated,
    /// Not UTF-8, or a control character.
    #[error("NQN holds a byte at {at} that is not text")]
    NotText {
        /// Index of the byte.
        at: usize,
    },
    /// Not `nqn.yyyy-mm.`.
    #[error("NQN does not start with nqn.yyyy-mm.")]
    Prefix,
    /// The UUID form without a UUID.
    #[error("NQN's UUID is malformed")]
    Uuid,
}

const UUID_PREFIX: &[u8] = b"nqn.2014-08.org.nvmexpress:uuid:";

impl Nqn {
    /// Most bytes of a name.
    pub const MAX_LEN: usize = 223;
    /// Bytes of a field that holds a name, NUL-terminated and zero-filled.
    pub const FIELD_LEN: usize = 256;

    /// The well-known name of discovery subsystems (NVMe base 2.0c §4.5).
    pub const DISCOVERY: Self = Self::literal("nqn.2014-08.org.nvmexpress.discovery");

    /// A name known when compiled; fails the build if it is too long to be one.
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

    /// Checks `text`.
    pub fn new(text: &str) -> Result<Self, NqnError> {
        Self::from_bytes(text.as_bytes())
    }

    /// Checks the name in a field of 256 bytes.
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

    /// The field of 256 bytes.
    pub fn field(&self) -> [u8; Self::FIELD_LEN] {
        let mut field = [0; Self::FIELD_LEN];
        self.emit(&mut field);
        field
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        // Only `from_bytes` and `literal` make a value, both from UTF-8.
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len as usize).unwrap_or_default()
    }

    /// Whether it is the well-known discovery name.
    pub fn is_discovery(&self) -> bool {
        *self == Self::DISCOVERY
    }

    fn from_bytes(text: &[u8]) -> Result<Self, NqnError> {
        if text.is_empty() {
            return Err(NqnError::Empty);
        }
        if text.len() > Self::MAX_LEN {
            return Err(NqnError::TooLong);
        }
        if let Err(error) = str::from_utf8(text) {
            return Err(NqnError::NotText { at: error.valid_up_to() });
        }
        if let Some(at) = text.iter().position(u8::is_ascii_control) {
            return Err(NqnError::NotText { at });
        }
        check_form(text)?;
        let mut bytes = [0; Self::MAX_LEN];
        for (to, from) in bytes.iter_mut().zip(text) {
            *to = *from;
        }
        Ok(Self { len: text.len() as u8, bytes })
    }
}

fn check_form(text: &[u8]) -> Result<(), NqnError> {
    let [b'n', b'q', b'n', b'.', y0, y1, y2, y3, b'-', m0, m1, b'.', _, ..] = text else {
        return Err(NqnError::Prefix);
    };
    if ![y0, y1, y2, y3, m0, m1].iter().all(|byte| byte.is_ascii_digit()) {
        return Err(NqnError::Prefix);
    }
    let Some(uuid) = text.strip_prefix(UUID_PREFIX) else { return Ok(()) };
    let well_formed = uuid.len() == 36
        && uuid.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    if well_formed { Ok(()) } else { Err(NqnError::Uuid) }
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

    #[test]
    fn valid_names() {
        let uuid = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-55555555aaFF";
        let longest = format!("nqn.2026-01.org.example:{}", "x".repeat(199));
        assert_eq!(longest.len(), Nqn::MAX_LEN);
        for text in ["nqn.2014-08.org.nvmexpress.discovery", uuid, &longest, "nqn.2026-01.org.example:größe"]
        {
            let nqn = Nqn::new(text).unwrap();
            assert_eq!(nqn.as_str(), text);
            let mut field = [0xff; 256];
            nqn.emit(&mut field);
            assert_eq!(&field[..text.len()], text.as_bytes());
            assert!(field[text.len()..].iter().all(|&byte| byte == 0));
            assert_eq!(Nqn::parse(&field), Ok(nqn));
        }
        assert!(Nqn::new("nqn.2014-08.org.nvmexpress.discovery").unwrap().is_discovery());
    }

    #[test]
    fn invalid_names() {
        for (text, error) in [
            ("", NqnError::Empty),
            ("iqn.2014-08.org.example", NqnError::Prefix),
            ("nqn.2014-8.org.example", NqnError::Prefix),
            ("nqn.2014-08.", NqnError::Prefix),
            ("nqn.2014-08.org.exa\u{7}mple", NqnError::NotText { at: 19 }),
            ("nqn.2014-08.org.nvmexpress:uuid:1111", NqnError::Uuid),
        ] {
            assert_eq!(Nqn::new(text), Err(error), "{text}");
        }
        assert_eq!(Nqn::new(&"x".repeat(224)), Err(NqnError::TooLong));
        assert_eq!(Nqn::parse(&[b'n'; 256]), Err(NqnError::NotTerminated));
    }
}
