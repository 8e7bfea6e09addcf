//! Names of things in Kubernetes, Istio and Vault.

use std::{net::IpAddr, str::FromStr};

/// A DNS name of Kubernetes' kind: a node or a domain.
#[derive(Clone, Debug)]
pub(crate) struct DnsName(pub(crate) String);

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
pub(crate) struct Namespace(pub(crate) String);

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

/// The name of a TLS server: a DNS name or an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerName(pub(crate) String);

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
pub(crate) struct ServerNames(pub(crate) Vec<String>);

impl FromStr for ServerNames {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = text.split(',').map(|name| name.trim().parse::<ServerName>().map(|name| name.0));
        names.collect::<Result<_, _>>().map(Self)
    }
}

/// The name of a cluster, as Istio has it.
#[derive(Clone, Debug)]
pub(crate) struct ClusterId(pub(crate) String);

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
pub(crate) struct Accounts(pub(crate) Vec<(String, String)>);

impl FromStr for Accounts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let accounts = text.split(',').map(|account| namespaced(account.trim())).collect::<Option<_>>();
        accounts.map(Self).ok_or_else(|| "use NAMESPACE/NAME, with commas between several".to_owned())
    }
}

/// An object of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = namespaced(text).ok_or_else(|| "use NAMESPACE/NAME".to_owned())?;
        Ok(Self { namespace, name })
    }
}

/// Services: of whole namespaces, or one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterLocalServices(pub(crate) Vec<(String, Option<String>)>);

impl FromStr for ClusterLocalServices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |text: &str| match namespaced(text) {
            Some((namespace, name)) => Some((namespace, Some(name))),
            None => text.parse::<Namespace>().ok().map(|namespace| (namespace.0, None)),
        };
        let all = text.split(',').map(|part| one(part.trim())).collect::<Option<_>>();
        all.map(Self).ok_or_else(|| "use NAMESPACE or NAMESPACE/NAME, with commas between several".to_owned())
    }
}

/// A key of a ConfigMap's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigMapKey(pub(crate) String);

impl FromStr for ConfigMapKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match (1..=253).contains(&text.len()) && text.chars().all(legal) {
            true => Ok(Self(text.to_owned())),
            false => Err("a key has 1 to 253 letters, digits, '-', '_' and '.'".to_owned()),
        }
    }
}

fn namespaced(text: &str) -> Option<(String, String)> {
    let (namespace, name) = text.split_once('/')?;
    let good = namespace.parse::<Namespace>().is_ok() && name.parse::<DnsName>().is_ok();
    good.then(|| (namespace.to_owned(), name.to_owned()))
}

/// A path or name in Vault, without slashes at its ends.
#[derive(Clone, Debug)]
pub(crate) struct VaultPath(pub(crate) String);

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
