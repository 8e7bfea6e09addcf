//! The kinds of values that settings take. Each is parsed in one place, whether it comes from a flag, the environment or
//! the config file, and its error says what would do.

mod addresses;
mod amounts;
mod label;
mod names;
mod observing;
mod outbound;
mod providers;
mod trust;
mod words;

use std::{path::PathBuf, str::FromStr};

use crate::telemetry;

pub(crate) use addresses::{IpBlocks, ListenAddr, LoopbackAddr, ServiceAddr, Url};
pub(crate) use amounts::{
    BusyPolling, Drain, Hold, KeyRefresh, MapEntries, Rate, TrustedProxies, Ttl, Wait, Window, Workers,
};
pub(crate) use label::DataplaneLabel;
pub(crate) use names::{
    Accounts, ClusterId, ClusterLocalServices, ConfigMapKey, DnsName, Namespace, ObjectName, ServerName,
    ServerNames, VaultPath,
};
pub(crate) use observing::{CollectorUrl, HttpTelemetry, Sampling};
pub(crate) use outbound::VipNetworks;
pub(crate) use providers::ExtensionProviders;
pub(crate) use trust::{TrustBundles, TrustDomains};
pub(crate) use words::{
    Bundling, CaTrust, IssuerKind, KernelTls, LocalTraffic, MetricsAuth, OutboundPolicy, PostQuantum, Switch,
};

/// A path, made absolute where it is given.
#[derive(Clone, Debug)]
pub(crate) struct Location(pub(crate) PathBuf);

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the path is empty".to_owned());
        }
        std::path::absolute(text).map(Self).map_err(|error| error.to_string())
    }
}

/// Paths joined by commas.
#[derive(Clone, Debug)]
pub(crate) struct Locations(pub(crate) Vec<PathBuf>);

impl FromStr for Locations {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(|path| path.trim().parse().map(|Location(path)| path))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// A filter of the form that RUST_LOG takes.
#[derive(Clone, Debug)]
pub(crate) struct LogFilter(pub(crate) String);

impl FromStr for LogFilter {
    type Err = telemetry::LoggingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        telemetry::parse_filter(text).map(|_| Self(text.to_owned()))
    }
}
