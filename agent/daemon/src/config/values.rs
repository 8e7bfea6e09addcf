//! The kinds of values that settings take. Each is parsed in one place, whether it comes from a flag, the environment or
//! the config file, and its error says what would do.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::{NonZeroU16, NonZeroUsize},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use ambit_core::model::TrustDomain;

use crate::telemetry;

const MIN_TTL: Duration = Duration::from_secs(10);
const MAX_DRAIN: Duration = Duration::from_secs(3600);
const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
const MAX_WORKERS: usize = 256;

/// A DNS name of Kubernetes' kind: a node or a domain.
#[derive(Clone, Debug)]
pub(super) struct DnsName(pub(super) String);

impl FromStr for DnsName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() <= 253 && text.split('.').all(is_dns_label) {
            return Ok(Self(text.to_owned()));
        }
        Err("a name has lower-case letters, digits, '-' and '.', and at most 253 of them".to_owned())
    }
}

/// The name of a Kubernetes namespace.
#[derive(Clone, Debug)]
pub(super) struct Namespace(pub(super) String);

impl FromStr for Namespace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if is_dns_label(text) {
            return Ok(Self(text.to_owned()));
        }
        Err("a namespace has lower-case letters, digits and '-', and at most 63 of them".to_owned())
    }
}

fn is_dns_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A path, made absolute where it is given.
#[derive(Clone, Debug)]
pub(super) struct Location(pub(super) PathBuf);

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the path is empty".to_owned());
        }
        std::path::absolute(text).map(Self).map_err(|error| error.to_string())
    }
}

/// An address to listen on.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListenAddr(pub(super) SocketAddr);

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| "use IP:port, such as 0.0.0.0:15020 or [::]:15020".to_owned())
    }
}

/// The host and port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceAddr {
    /// A DNS name or an IP address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
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

/// The name of a TLS server: a DNS name or an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerName(pub(super) String);

impl FromStr for ServerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<IpAddr>().is_ok() || text.parse::<DnsName>().is_ok() {
            true => Ok(Self(text.to_owned())),
            false => Err("use a DNS name in lower case or an IP address".to_owned()),
        }
    }
}

/// The names of a TLS server, with commas between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerNames(pub(super) Vec<String>);

impl FromStr for ServerNames {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = text.split(',').map(|name| name.trim().parse::<ServerName>().map(|name| name.0));
        names.collect::<Result<_, _>>().map(Self)
    }
}

/// The name of a cluster, as Istio has it.
#[derive(Clone, Debug)]
pub(super) struct ClusterId(pub(super) String);

impl FromStr for ClusterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if (1..=253).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self(text.to_owned()));
        }
        Err("a cluster's name has 1 to 253 printable characters and no space".to_owned())
    }
}

/// Service accounts, with commas between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Accounts(pub(super) Vec<(String, String)>);

impl FromStr for Accounts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let accounts = text.split(',').map(|account| namespaced(account.trim())).collect::<Option<_>>();
        accounts.map(Self).ok_or_else(|| "use NAMESPACE/NAME, with commas between several".to_owned())
    }
}

/// An object of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObjectName {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = namespaced(text).ok_or_else(|| "use NAMESPACE/NAME".to_owned())?;
        Ok(Self { namespace, name })
    }
}

fn namespaced(text: &str) -> Option<(String, String)> {
    let (namespace, name) = text.split_once('/')?;
    let good = namespace.parse::<Namespace>().is_ok() && name.parse::<DnsName>().is_ok();
    good.then(|| (namespace.to_owned(), name.to_owned()))
}

/// A port of this host's loopback interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoopbackAddr(pub(super) SocketAddr);

impl FromStr for LoopbackAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ListenAddr(addr) = text.parse()?;
        let ours = addr.ip().is_loopback();
        ours.then_some(Self(addr)).ok_or_else(|| "use 127.0.0.1:PORT or [::1]:PORT".to_owned())
    }
}

/// How many certificates a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate(pub(super) u32);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(rate @ 1..=100_000) => Ok(Self(rate)),
            _ => Err("use a whole number from 1 to 100000".to_owned()),
        }
    }
}

/// A filter of the form that RUST_LOG takes.
#[derive(Clone, Debug)]
pub(super) struct LogFilter(pub(super) String);

impl FromStr for LogFilter {
    type Err = telemetry::LoggingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        telemetry::parse_filter(text).map(|_| Self(text.to_owned()))
    }
}

/// The lifetime of a certificate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ttl(pub(super) Duration);

impl FromStr for Ttl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match parse_duration(text)? {
            ttl if ttl < MIN_TTL => Err("it must be at least 10s".to_owned()),
            ttl if ttl > MAX_TTL => Err("it must be at most 90d".to_owned()),
            ttl => Ok(Self(ttl)),
        }
    }
}

/// How long established connections may go on at the agent's end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain(pub(super) Duration);

impl FromStr for Drain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match parse_duration(text)? {
            drain if drain > MAX_DRAIN => Err("it must be at most 1h".to_owned()),
            drain => Ok(Self(drain)),
        }
    }
}

/// `90s`, `10m`, `24h`, `30d`, or several of them, largest first: `1h30m`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut total = 0_u64;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let unit = match tail.chars().next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            _ => 0,
        };
        if digits == 0 || unit == 0 || unit >= last_unit {
            break;
        }
        let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        total = seconds
            .and_then(|seconds| total.checked_add(seconds))
            .ok_or_else(|| format!("{text:?} is too long a time"))?;
        last_unit = unit;
        rest = &tail[1..];
    }
    if text.is_empty() || !rest.is_empty() {
        return Err(format!(
            "{text:?} is no duration: use a number with a unit, such as 90s, 10m, 24h or 30d"
        ));
    }
    Ok(Duration::from_secs(total))
}

/// How many threads carry traffic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workers(pub(super) NonZeroUsize);

impl FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<NonZeroUsize>()
            .ok()
            .filter(|workers| workers.get() <= MAX_WORKERS)
            .map(Self)
            .ok_or_else(|| format!("use a whole number from 1 to {MAX_WORKERS}"))
    }
}

/// The label that opts namespaces in and pods out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataplaneLabel {
    /// The label's key.
    pub(crate) key: String,
    /// The value that opts a namespace or pod in.
    pub(crate) enabled: String,
    /// The value that opts a pod out.
    pub(crate) disabled: String,
}

impl Default for DataplaneLabel {
    fn default() -> Self {
        Self {
            key: ambit_core::model::DATAPLANE_LABEL.to_owned(),
            enabled: "enabled".to_owned(),
            disabled: "disabled".to_owned(),
        }
    }
}

impl FromStr for DataplaneLabel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, values) = text.split_once('=').ok_or("use KEY=ENABLED or KEY=ENABLED,DISABLED")?;
        let (enabled, disabled) = values.split_once(',').unwrap_or((values, "disabled"));
        let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
        if !is_label_text(name) || prefix.is_some_and(|prefix| prefix.parse::<DnsName>().is_err()) {
            return Err(format!("{key:?} is not the key of a label"));
        }
        if let Some(bad) = [enabled, disabled].into_iter().find(|value| !is_label_text(value)) {
            return Err(format!("{bad:?} is not the value of a label"));
        }
        if enabled == disabled {
            return Err(format!("{enabled:?} cannot mean both in and out"));
        }
        Ok(Self { key: key.to_owned(), enabled: enabled.to_owned(), disabled: disabled.to_owned() })
    }
}

fn is_label_text(text: &str) -> bool {
    let edge = |c: u8| c.is_ascii_alphanumeric();
    let inner = |c: u8| edge(c) || matches!(c, b'-' | b'_' | b'.');
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && text.bytes().next().is_some_and(edge)
        && text.bytes().last().is_some_and(edge)
}

/// Whether tunnels use the hybrid post-quantum key exchange X25519MLKEM768.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PostQuantum {
    /// Never.
    Off,
    /// Where the peer wants it; X25519 is offered first.
    #[default]
    Offer,
    /// Offered first.
    Prefer,
    /// Nothing else: a peer without it is refused.
    Require,
}

impl FromStr for PostQuantum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "offer" => Ok(Self::Offer),
            "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            _ => Err("use off, offer, prefer or require".to_owned()),
        }
    }
}

impl fmt::Display for PostQuantum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Offer => "offer",
            Self::Prefer => "prefer",
            Self::Require => "require",
        })
    }
}

/// Trust domains joined by commas.
#[derive(Clone, Debug)]
pub(super) struct TrustDomains(pub(super) Vec<TrustDomain>);

impl FromStr for TrustDomains {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let domains: Result<Vec<TrustDomain>, _> = text.split(',').map(str::parse).collect();
        domains.map(Self).map_err(|error| error.to_string())
    }
}

/// Trust domains and the files with their roots, joined by commas.
#[derive(Clone, Debug)]
pub(super) struct TrustBundles(pub(super) Vec<(TrustDomain, PathBuf)>);

impl FromStr for TrustBundles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bundle = |bundle: &str| {
            let (domain, file) =
                bundle.split_once('=').ok_or("use DOMAIN=FILE, with commas between several")?;
            let domain: TrustDomain = domain.trim().parse().map_err(|error| format!("{error}"))?;
            Ok((domain, file.parse::<Location>().map_err(|error| error.to_string())?.0))
        };
        let bundles = text.split(',').map(bundle).collect::<Result<Vec<_>, String>>()?;
        let twice = bundles
            .iter()
            .enumerate()
            .find(|(at, (domain, _))| bundles[..*at].iter().any(|(earlier, _)| earlier == domain));
        match twice {
            Some((_, (domain, _))) => {
                Err(format!("{domain} is there twice; one file may hold several roots"))
            }
            None => Ok(Self(bundles)),
        }
    }
}

/// Where certificates come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum IssuerKind {
    /// A CA in a folder.
    #[default]
    Builtin,
    /// A service that speaks Istio's CreateCertificate.
    Istio,
    /// Certificates that others put into a folder.
    Files,
    /// HashiCorp Vault's PKI engine.
    Vault,
    /// A SPIRE agent's Delegated Identity API.
    Spire,
}

impl FromStr for IssuerKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "builtin" => Ok(Self::Builtin),
            "istio" => Ok(Self::Istio),
            "files" => Ok(Self::Files),
            "vault" => Ok(Self::Vault),
            "spire" => Ok(Self::Spire),
            _ => Err("use builtin, istio, files, vault or spire".to_owned()),
        }
    }
}

/// An http or https address without a path.
#[derive(Clone, Debug)]
pub(super) struct Url(pub(super) hyper::Uri);

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

/// A path or name in Vault, without slashes at its ends.
#[derive(Clone, Debug)]
pub(super) struct VaultPath(pub(super) String);

impl FromStr for VaultPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim_matches('/');
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.split('/').all(|part| !part.is_empty() && part != ".." && part.chars().all(legal)) {
            return Ok(Self(text.to_owned()));
        }
        Err("use letters, digits, '-', '_', '.' and '/'".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_units_and_have_one_reading() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("24h", 86_400), ("1d", 86_400), ("1h30m", 5_400)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in
            ["", "10", "s", "-5m", "1.5h", "10 m", "5m1h", "5m5m", "1w", "99999999999999999999s", "h1", "10µ"]
        {
            assert!(parse_duration(bad).is_err(), "{bad} was taken");
        }
        assert!("18446744073709551615d".parse::<Ttl>().is_err());
    }

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

    #[test]
    fn the_label_has_a_key_and_two_values() {
        let label: DataplaneLabel = "istio.io/dataplane-mode=ambient,none".parse().unwrap();
        assert_eq!(
            (&*label.key, &*label.enabled, &*label.disabled),
            ("istio.io/dataplane-mode", "ambient", "none")
        );
        assert_eq!("mesh=on".parse::<DataplaneLabel>().unwrap().disabled, "disabled");
        for bad in
            ["", "=", "a", "a=", "a=b,", "a=b,b", "a/b/c=d", "/a=b", "a b=c", "-a=b", "a=b,c,d", "A.b/c=d"]
        {
            assert!(bad.parse::<DataplaneLabel>().is_err(), "{bad} was taken");
        }
    }
}
