//! Resolves addresses from text to socket addresses, and decides which listeners exclude each other.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use trefoil_config::Address;
use trefoil_sys::socket::interface_index;

/// Returns the socket address. Looks up the number that the scope's interface has now.
///
/// # Errors
/// The interface doesn't exist now, or a link-local address has no interface.
pub fn resolve(address: Address) -> io::Result<SocketAddr> {
    let Some(scope) = address.scope() else {
        if !address.is_link_local() {
            return Ok(address.at(0));
        }
        let what = "a link-local address needs its interface, such as [fe80::1%eth0]:4420";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    };
    let missing = |_| {
        let what = format!("this machine has no interface `{}`", scope.as_str());
        io::Error::new(io::ErrorKind::NotFound, what)
    };
    let index = scope.index().map_or_else(|| interface_index(scope.as_str()).map_err(missing), Ok)?;
    Ok(address.at(index))
}

/// Returns whether a listener leaves IPv4 to another listener. An IPv6 wildcard serves both families, except if `all` has the
/// IPv4 wildcard of the same port.
pub fn is_v6_only(listen: Address, all: &BTreeSet<Address>) -> bool {
    let v4 = Address::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port())));
    listen.ip() == Ipv6Addr::UNSPECIFIED && all.contains(&v4)
}

/// Returns whether two different listeners exclude each other because the address of one includes the address of the other. The
/// two wildcards of a port don't exclude each other: see [`is_v6_only`].
pub fn overlap(a: Address, b: Address) -> bool {
    let includes = |any: Address, one: Address| match one.is_ipv4() {
        true if one.ip().is_unspecified() => false,
        true => any.ip().is_unspecified(),
        false => any.ip() == Ipv6Addr::UNSPECIFIED,
    };
    a.port() == b.port() && (a == b || includes(a, b) || includes(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().expect("an address")
    }

    #[test]
    fn a_scope_becomes_a_number_when_a_socket_is_opened() {
        let resolved = |text: &str| resolve(address(text)).map_err(|e| e.to_string());
        let lo = interface_index("lo").expect("every machine has it");
        assert_eq!(resolved("[fe80::1%lo]:1"), Ok(address("[fe80::1]:1").at(lo)));
        assert_eq!(resolved("[fe80::1%7]:1"), Ok(address("[fe80::1]:1").at(7)));
        assert_eq!(resolved("[::1]:1"), Ok(address("[::1]:1").at(0)));
        assert_eq!(resolved("[fe80::1%nosuch0]:1"), Err("this machine has no interface `nosuch0`".into()));
        assert!(resolved("[fe80::1]:1").is_err_and(|e| e.contains("needs its interface")));
    }

    #[test]
    fn listeners_that_include_each_other_overlap() {
        let overlaps = |a, b| {
            assert_eq!(overlap(address(a), address(b)), overlap(address(b), address(a)), "{a} {b}");
            overlap(address(a), address(b))
        };
        for (a, b) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("[::]:1", "127.0.0.1:1"),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1"),
        ] {
            assert!(overlaps(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("0.0.0.0:1", "[::]:1"),
            ("0.0.0.0:1", "[::1]:1"),
            ("0.0.0.0:1", "127.0.0.1:2"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("[fe80::1%eth0]:1", "[fe80::1%eth1]:1"),
        ] {
            assert!(!overlaps(a, b), "{a} {b}");
        }
    }

    #[test]
    fn the_ipv6_wildcard_leaves_ipv4_to_its_own_wildcard() {
        let (v6, v4) = (address("[::]:1"), address("0.0.0.0:1"));
        assert!(is_v6_only(v6, &BTreeSet::from([v4, v6])));
        assert!(!is_v6_only(v6, &BTreeSet::from([v6, address("0.0.0.0:2"), address("127.0.0.1:1")])));
        assert!(!is_v6_only(v4, &BTreeSet::from([v4, v6])));
    }
}
