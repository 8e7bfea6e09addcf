//! Addresses of services, and those to listen on.

use std::{
    net::{Ipv6Addr, SocketAddr},
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

/// An http or https address without a path.
#[derive(Clone, Debug)]
pub(crate) struct Url(pub(crate) hyper::Uri);

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<hyper::Uri>()
            .ok()
            .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
            .filter(|uri| matches!(uri.path(), "" | "/") && uri.query().is_none())
            .map(Self)
            .ok_or_else(|| "use https://HOST[:PORT] without a path".to_owned())
    }
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
    }
}
