//! An address in the operator's notation: `192.0.2.1:4420`, `[2001:db8::1]:4420`, `[fe80::1%eth0]:4420`.
//!
//! What it is: the one notation for every address of a gateway. The scope of an IPv6 address is kept as written, because an
//! interface keeps its name over a reboot, but may get another number. An IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2)
//! equals its IPv4 address.
//!
//! What it is not: the address of a socket. The code that opens a socket looks up the interface's number.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

/// An IP address with its port, and optionally the scope of an IPv6 address. Two addresses are equal if they have the same
/// meaning. Equality ignores the scope of an address that is not link-local, as the kernel does (RFC 4007 §6).
#[derive(Clone, Copy)]
pub struct Address {
    ip: IpAddr,
    port: u16,
    scope: Option<Scope>,
}

/// The interface of a link-local address: the name of the interface as written, or its number without leading zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// The text, padded with zeros.
    bytes: [u8; Self::MAX_LEN],
}

/// The reason why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text doesn't have the form of an address with a port.
    #[error("`{0}` is not an address with a port, such as 192.0.2.1:4420 or [2001:db8::1]:4420")]
    Form(String),
    /// The part before the port is not an IP address.
    #[error("`{0}` is not an IP address")]
    Ip(String),
    /// The part after `%` can't be the name or the number of an interface.
    #[error("`{0}`: the text after % is neither the name nor the number of an interface")]
    Scope(String),
    /// Only IPv6 has scopes.
    #[error("`{0}`: an IPv4 address has no scope; leave out % and the text after it")]
    ScopeOfIpv4(String),
}

impl Scope {
    /// The kernel's IFNAMSIZ, which includes the terminating zero byte.
    const MAX_LEN: usize = 16;

    /// Returns the scope `text`, if an interface can have this name or number.
    fn new(text: &str) -> Option<Self> {
        let is_plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%' | b'[' | b']' | b'`');
        let is_name = !matches!(text, "" | "." | "..") && text.bytes().all(is_plain);
        let is_number = text.bytes().all(|b| b.is_ascii_digit());
        // `%02` and `%2` are the same interface.
        let number = text.trim_start_matches('0');
        let text = if is_number { number } else { text };
        if !is_name || text.len() >= Self::MAX_LEN || (is_number && number.parse::<u32>().is_err()) {
            return None;
        }
        let mut bytes = [0; Self::MAX_LEN];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Self { bytes })
    }

    /// Returns the scope as text, without `%`.
    pub fn as_str(&self) -> &str {
        let len = self.bytes.iter().position(|&b| b == 0).unwrap_or(Self::MAX_LEN);
        self.bytes.get(..len).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// Returns the interface's number, if the scope is a number.
    pub fn index(&self) -> Option<u32> {
        self.as_str().parse().ok()
    }
}

impl Address {
    /// Returns the address `ip` with its port. `ip` may end with `%` and a scope.
    ///
    /// # Errors
    /// An error if `ip` is not an IP address with an optional scope.
    pub fn new(ip: &str, port: u16) -> Result<Self, AddressError> {
        let (bare, scope) = ip.split_once('%').map_or((ip, None), |(bare, scope)| (bare, Some(scope)));
        let address: IpAddr = bare.parse().map_err(|_| AddressError::Ip(ip.into()))?;
        let scope = match scope {
            None => None,
            Some(_) if address.to_canonical().is_ipv4() => return Err(AddressError::ScopeOfIpv4(ip.into())),
            // No interface has the number zero, so the address has no scope.
            Some(zero) if !zero.is_empty() && zero.bytes().all(|b| b == b'0') => None,
            Some(scope) => Some(Scope::new(scope).ok_or_else(|| AddressError::Scope(ip.into()))?),
        };
        Ok(Self { ip: address.to_canonical(), port, scope })
    }

    /// Returns the IP address, never an IPv4-mapped one.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the scope, if one was written.
    pub fn scope(&self) -> Option<Scope> {
        self.scope
    }

    /// Returns whether the address is an IPv4 address.
    pub fn is_ipv4(&self) -> bool {
        self.ip.is_ipv4()
    }

    /// Returns whether the address is link-local. Such an address needs a scope.
    pub fn is_link_local(&self) -> bool {
        is_link_local(self.ip)
    }

    /// Returns the address of `ip` and `port`. If `ip` is link-local, the new address gets the scope of this address.
    pub fn beside(&self, ip: IpAddr, port: u16) -> Self {
        let ip = ip.to_canonical();
        let scope = self.scope.filter(|_| is_link_local(ip));
        Self { ip, port, scope }
    }

    /// Returns the socket address. `scope_id` is the number of the scope's interface (0 for none).
    pub fn at(&self, scope_id: u32) -> SocketAddr {
        match self.ip {
            IpAddr::V4(_) => SocketAddr::new(self.ip, self.port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, self.port, 0, scope_id).into(),
        }
    }

    /// Returns the IP address with its scope, without the port.
    pub fn ip_text(&self) -> String {
        match &self.scope {
            Some(scope) => format!("{}%{}", self.ip, scope.as_str()),
            None => self.ip.to_string(),
        }
    }

    /// Returns the values that equality compares.
    fn meaning(&self) -> (IpAddr, u16, Option<Scope>) {
        (self.ip, self.port, self.scope.filter(|_| self.is_link_local()))
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let form = || AddressError::Form(text.into());
        let Some((ip, rest)) = text.split_once('%') else {
            let address: SocketAddr = text.parse().map_err(|_| form())?;
            return Ok(address.into());
        };
        let (scope, port) = rest.split_once("]:").ok_or_else(form)?;
        // The standard library parses the rest of the notation.
        let bare: SocketAddr = format!("{ip}]:{port}").parse().map_err(|_| form())?;
        Self::new(&format!("{}%{scope}", bare.ip()), bare.port())
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let scope = match address {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => Scope::new(&v6.scope_id().to_string()),
            _ => None,
        };
        let ip = address.ip().to_canonical();
        Self { ip, port: address.port(), scope: scope.filter(|_| ip.is_ipv6()) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{ip}:{}", self.port),
            IpAddr::V6(_) => write!(f, "[{}]:{}", self.ip_text(), self.port),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.meaning() == other.meaning()
    }
}

impl Eq for Address {}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Address {
    fn cmp(&self, other: &Self) -> Ordering {
        self.meaning().cmp(&other.meaning())
    }
}

impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.meaning().hash(state);
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Address;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address with a port")
            }

            // serde reports an error from here at the place of the text, not at the place of the list around it.
            fn visit_str<E: Error>(self, text: &str) -> Result<Address, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_comes_back_as_it_was_written() {
        let texts = [
            "192.0.2.1:4420",
            "[2001:db8::1]:1",
            "[fe80::1%eth0]:4420",
            "[fe80::1%2]:65535",
            "[::1%lo]:80",
            "[fe80::1%eth0.12]:1",
        ];
        for text in texts {
            assert_eq!(address(text).to_string(), text);
            assert_eq!(Address::new(&address(text).ip_text(), address(text).port()), Ok(address(text)));
            assert_eq!(
                serde_json::to_string(&address(text)).ok(),
                Some(format!("\"{text}\"")),
                "the JSON form is the text"
            );
        }
        assert_eq!(address("[fe80::1%2]:1").scope().and_then(|scope| scope.index()), Some(2));
        assert_eq!(address("[fe80::1%eth0]:1").scope().and_then(|scope| scope.index()), None);
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        assert_eq!(address("[::ffff:192.0.2.1]:4420").to_string(), "192.0.2.1:4420");
        assert_eq!(Address::new("::ffff:c000:201", 4420), Ok(address("192.0.2.1:4420")));
        let socket: SocketAddr = "[::ffff:192.0.2.1]:4420".parse().expect("an address");
        assert_eq!(Address::from(socket), address("192.0.2.1:4420"));
        assert_eq!(address("[::ffff:192.0.2.1]:4420").at(0), SocketAddr::from(([192, 0, 2, 1], 4420)));
    }

    #[test]
    fn two_addresses_are_equal_if_they_mean_the_same() {
        assert_eq!(address("[0:0:0:0:0:0:0:1]:1"), address("[::1]:1"));
        assert_eq!(address("[::1%lo]:1"), address("[::1]:1"), "only link-local addresses have links");
        assert_eq!(address("[fe80::1%02]:1"), address("[fe80::1%2]:1"));
        assert_eq!(address("[fe80::1%0]:1"), address("[fe80::1]:1"));
        assert_ne!(address("[fe80::1%eth0]:1"), address("[fe80::1%eth1]:1"));
        assert_ne!(address("[fe80::1%eth0]:1"), address("[fe80::1]:1"));
        assert_ne!(address("[::1]:1"), address("[::1]:2"));
        assert_ne!(address("0.0.0.0:1"), address("[::]:1"));
    }

    #[test]
    fn what_is_no_address_is_named() {
        let error = |text: &str| text.parse::<Address>().expect_err("no address").to_string();
        for text in
            ["127.0.0.1", "::1", "fe80::1%eth0:4420", "[fe80::1%eth0]", "[fe80::1%eth0]:x", "", "%", "a:1"]
        {
            assert!(error(text).starts_with(&format!("`{text}` is not an address with a port")), "{text}");
        }
        for text in
            ["[fe80::1%]:1", "[fe80::1%a b]:1", "[fe80::1%sixteen-letters-]:1", "[fe80::1%4294967296]:1"]
        {
            assert!(error(text).contains("the text after % is neither"), "{text}: {}", error(text));
        }
        assert!(error("[::ffff:192.0.2.1%eth0]:1").contains("an IPv4 address has no scope"));
        assert!(Address::new("192.0.2.1%eth0", 1).is_err_and(|e| e.to_string().contains("no scope")));
        assert!(Address::new("host", 1).is_err_and(|e| e.to_string() == "`host` is not an IP address"));
    }
}
