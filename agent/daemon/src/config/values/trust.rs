//! Who signs, who is believed, by which key exchange, and who may read metrics.

use std::{fmt, path::PathBuf, str::FromStr};

use ambit_core::model::TrustDomain;

use super::Location;

/// Where certificates come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum IssuerKind {
    /// A CA in a folder.
    #[default]
    Builtin,
    /// `ambit ca`, which speaks Istio's CreateCertificate.
    Ambit,
    /// Another service that does.
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
            "ambit" => Ok(Self::Ambit),
            "istio" => Ok(Self::Istio),
            "files" => Ok(Self::Files),
            "vault" => Ok(Self::Vault),
            "spire" => Ok(Self::Spire),
            _ => Err("use builtin, ambit, istio, files, vault or spire".to_owned()),
        }
    }
}

/// Who may read metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MetricsAuth {
    /// Everybody.
    #[default]
    None,
    /// Who bears a token of the cluster whose owner RBAC lets read them.
    Token,
}

impl FromStr for MetricsAuth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "token" => Ok(Self::Token),
            _ => Err("use none or token".to_owned()),
        }
    }
}

/// Where the roots that workloads trust come from, with a certificate service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CaTrust {
    /// With every certificate.
    #[default]
    Answers,
    /// From the file with the service's own roots.
    Root,
}

impl FromStr for CaTrust {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "answers" => Ok(Self::Answers),
            "root" => Ok(Self::Root),
            _ => Err("use answers or root".to_owned()),
        }
    }
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

/// How pods of one node talk with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LocalTraffic {
    /// Without a tunnel, under the same identities and policies.
    #[default]
    Join,
    /// As with pods of other nodes.
    Encrypt,
}

impl FromStr for LocalTraffic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "join" => Ok(Self::Join),
            "encrypt" => Ok(Self::Encrypt),
            _ => Err("use join or encrypt".to_owned()),
        }
    }
}

/// Whether the kernel seals and opens the records of tunnels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KernelTls {
    /// The agent does.
    #[default]
    Off,
    /// Where the kernel can do all that it takes.
    Auto,
    /// Also by a kernel that cannot renew keys; and no start where there is none.
    Force,
}

impl FromStr for KernelTls {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "force" => Ok(Self::Force),
            _ => Err("use off, auto or force".to_owned()),
        }
    }
}

/// Whether small messages of many connections between two pods share packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Bundles {
    /// Each connection's go by themselves.
    Off,
    /// While many connections speak at a time.
    #[default]
    Auto,
    /// Wherever there are two, however seldom they speak.
    Force,
}

impl FromStr for Bundles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "force" => Ok(Self::Force),
            _ => Err("use off, auto or force".to_owned()),
        }
    }
}

/// Trust domains joined by commas.
#[derive(Clone, Debug)]
pub(crate) struct TrustDomains(pub(crate) Vec<TrustDomain>);

impl FromStr for TrustDomains {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(trust_domain).collect::<Result<_, _>>().map(Self)
    }
}

/// One of several, spaces around it not counted.
fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    text.trim().parse().map_err(|error| format!("{error}"))
}

/// Trust domains and the files with their roots, joined by commas.
#[derive(Clone, Debug)]
pub(crate) struct TrustBundles(pub(crate) Vec<(TrustDomain, PathBuf)>);

impl FromStr for TrustBundles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bundle = |bundle: &str| {
            let (domain, file) =
                bundle.split_once('=').ok_or("use DOMAIN=FILE, with commas between several")?;
            Ok((trust_domain(domain)?, file.parse::<Location>().map_err(|error| error.to_string())?.0))
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
