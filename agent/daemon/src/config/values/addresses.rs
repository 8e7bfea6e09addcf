//! Addresses of services, and those to listen on.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    str::FromStr,
};

use super::ServerName;

/// An address to listen on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListenAddr(pub(crate) SocketAddr);

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| "use IP:port, such as 0.0.0.0:15020 or [::]:15020".to_owned())
    }
}

/// The host and port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceAddr {
    /// A DNS name or an IP address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for ServiceAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("http://") {
            return Err(
                "a certificate service is reached over TLS only; use HOST:PORT or https://HOST:PORT".into()
            );
        }
        let bare = text.strip_prefix("https://").unwrap_or(text);
        let (host, port) = bare.strip_suffix('/').unwrap_or(bare).rsplit_once(':').unwrap_or_default();
        let unbracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match (unbracketed, host.parse::<ServerName>()) {
            (Some(v6), _) if v6.parse::<Ipv6Addr>().is_ok() => Some(v6.to_owned()),
            (None, Ok(name)) if !name.0.contains(':') => Some(name.0),
            _ => None,
        };
        match (host, port.parse::<NonZeroU16>()) {
            (Some(host), Ok(port)) => Ok(Self { host, port: port.get() }),
            _ => Err("use HOST:PORT, such as istiod.istio-system.svc:15012".to_owned()),
        }
    }
}

/// A port of this host's loopback interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoopbackAddr(pub(crate) SocketAddr);

impl FromStr for LoopbackAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ListenAddr(addr) = text.parse()?;
        let ours = addr.ip().is_loopback();
        ours.then_some(Self(addr)).ok_or_else(|| "use 127.0.0.1:PORT or [::1]:PORT".to_owned())
    }
}

/// Blocks of addresses, with commas between them; an address alone is a block of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IpBlocks(pub(crate) Vec<(IpAddr, u8)>);

impl FromStr for IpBlocks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let block = |part: &str| {
            let (address, length) = part.trim().split_once('/').unwrap_or((part.trim(), ""));
            let address: IpAddr = address.parse().ok()?;
            let longest = if address.is_ipv4() { 32 } else { 128 };
            let length = if part.contains('/') { length.parse().ok()? } else { longest };
            (length <= longest).then_some((address, length))
        };
        let blocks = text.split(',').map(block).collect::<Option<_>>();
        blocks.map(Self).ok_or_else(|| "use CIDR blocks, such as 10.0.0.0/8,fd00::/8".to_owned())
    }
}

/// An https address without a path, to which secrets may be sent; http only to this host's loopback interface.
#[derive(Clone, Debug)]
pub(crate) struct Url(pub(crate) hyper::Uri);

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri = text
            .parse::<hyper::Uri>()
            .ok()
            .filter(|uri| matches!(uri.path(), "" | "/") && uri.query().is_none())
            .filter(|uri| uri.authority().is_some_and(|authority| !authority.as_str().contains('@')));
        match uri.as_ref().map(|uri| (uri.scheme_str(), uri.host().unwrap_or_default())) {
            Some((Some("https"), host)) if !host.is_empty() => {}
            Some((Some("http"), host)) if is_loopback(host) => {}
            Some((Some("http"), _)) => {
                return Err(
                    "http sends tokens in the clear; use https://HOST[:PORT], or http for 127.0.0.1, [::1] \
                            or localhost only"
                        .into(),
                );
            }
            _ => return Err("use https://HOST[:PORT] without a path".into()),
        }
        uri.map(Self).ok_or_else(|| "use https://HOST[:PORT] without a path".into())
    }
}

/// Whether a URL's host is this host by what it says: no name is looked up.
fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_a_host_and_a_port() {
        for (text, host, port) in [
            ("istiod.istio-system.svc:15012", "istiod.istio-system.svc", 15012),
            ("https://10.0.0.1:443/", "10.0.0.1", 443),
            ("[::1]:15012", "::1", 15012),
        ] {
            assert_eq!(text.parse(), Ok(ServiceAddr { host: host.to_owned(), port }), "{text}");
        }
        for bad in
            ["", "istiod", ":1", "::1:1", "[::1]", "[a]:1", "a:0", "a:65536", "a b:1", "http://a:1", "a:1/x"]
        {
            assert!(bad.parse::<ServiceAddr>().is_err(), "{bad} was taken");
        }
        assert!("http://a:1".parse::<ServiceAddr>().unwrap_err().contains("TLS only"));
    }

    #[test]
    fn blocks_of_addresses_are_read() {
        let blocks = |text: &str| text.parse::<IpBlocks>().map(|blocks| blocks.0);
        let two = vec![("10.0.0.0".parse().unwrap(), 8), ("fd00::1".parse().unwrap(), 128)];
        assert_eq!(blocks("10.0.0.0/8, fd00::1"), Ok(two));
        for bad in ["", "10.0.0.0/33", "fd00::/129", "10.0.0.0/", "10.0.0/8", "a", "10.0.0.1,"] {
            assert!(blocks(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn secrets_go_over_https_or_stay_on_this_host() {
        for good in [
            "https://vault.example:8200",
            "https://10.0.0.1/",
            "https://[fd00::1]:8200",
            "http://127.0.0.1:8200",
            "http://127.8.8.8",
            "http://[::1]:8200",
            "http://localhost:8200",
            "HTTP://LOCALHOST",
        ] {
            assert!(good.parse::<Url>().is_ok(), "{good}: {:?}", good.parse::<Url>());
        }
        for clear in [
            "http://vault.example:8200",
            "http://10.0.0.1",
            "http://localhost.example",
            "http://127.0.0.1.example:8200",
            "http://[fd00::1]",
            "http://[::ffff:10.0.0.1]",
            "http://0.0.0.0:8200",
            "http://2130706433",
        ] {
            assert!(clear.parse::<Url>().unwrap_err().contains("in the clear"), "{clear}");
        }
        for bad in [
            "",
            "vault:8200",
            "ftp://vault",
            "https://",
            "https://vault/v1",
            "https://vault?x",
            "https://u:p@vault",
        ] {
            assert!(bad.parse::<Url>().is_err(), "{bad} was taken");
        }
        let behind = "http://localhost@vault.example".parse::<Url>();
        assert!(behind.is_err(), "a user is no host");
    }
}
