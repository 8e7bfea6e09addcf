//! What DestinationRules say of how clients connect: whose connections, to which hosts, with which TLS and within which bounds.
//!
//! Objects arrive validated. Which rule holds for a connection is told by `rules`; routing to subsets is nobody's affair here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::model::{Labels, ObjectName};

/// The hosts that a rule or an entry speaks for, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This one.
    Exact(Arc<str>),
    /// All that end so; the text begins with a dot, or is empty and all hosts are meant.
    Suffix(Arc<str>),
}

impl HostPattern {
    /// Reads `*`, `*.example.com` or a host.
    pub fn new(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        match text.strip_prefix('*') {
            Some(suffix) => Self::Suffix(suffix.into()),
            None => Self::Exact(text.into()),
        }
    }

    /// Whether it speaks for `host`, which is in lower case.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *host,
            Self::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
        }
    }

    /// How narrowly it speaks: of two that match, the higher one counts.
    pub(super) fn rank(&self) -> (bool, usize) {
        match self {
            Self::Exact(exact) => (true, exact.len()),
            Self::Suffix(suffix) => (false, suffix.len()),
        }
    }
}

/// The namespaces whose clients see an object (`exportTo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExportTo {
    /// Those of all namespaces: `*`, and where nothing is said.
    #[default]
    All,
    /// Those of these only; `.` has become the object's own.
    Only(Vec<Arc<str>>),
}

impl ExportTo {
    /// Whether clients in `namespace` see it.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(namespaces) => namespaces.iter().any(|own| **own == *namespace),
        }
    }
}

/// A DestinationRule, as far as it speaks of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRule {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in seconds since 1970.
    pub created: Option<i64>,
    /// The hosts that it is for; a short name has become that of a service of its own namespace.
    pub host: HostPattern,
    /// Whose clients it is for beside its own namespace's.
    pub exported_to: ExportTo,
    /// `workloadSelector`: only clients of its own namespace with these labels.
    pub selector: Option<Labels>,
    /// `trafficPolicy`; a rule without one leaves the word to a younger rule for the same host.
    pub policy: Option<TrafficPolicy>,
}

/// How to connect, by the port of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// For ports that are not named.
    pub default: Arc<ClientSettings>,
    /// `portLevelSettings`: each replaces the default altogether.
    pub ports: BTreeMap<u16, Arc<ClientSettings>>,
}

impl TrafficPolicy {
    /// What holds for a port of the service.
    pub fn at(&self, port: u16) -> &Arc<ClientSettings> {
        self.ports.get(&port).unwrap_or(&self.default)
    }

    /// Whether any of it makes a connection another one than it would be.
    pub fn acts(&self) -> bool {
        self.default.acts() || self.ports.values().any(|settings| settings.acts())
    }
}

/// How clients connect to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSettings {
    /// The rule that says so.
    pub rule: ObjectName,
    /// The TLS of the connection.
    pub tls: ClientTls,
    /// Its bounds.
    pub pool: ConnectionPool,
}

impl ClientSettings {
    fn acts(&self) -> bool {
        !matches!(self.tls, ClientTls::Unset | ClientTls::Disable) || self.pool != ConnectionPool::default()
    }
}

/// `trafficPolicy.tls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientTls {
    /// Nothing is said: mutual TLS where the endpoint is in the mesh, else as the application speaks.
    Unset,
    /// No TLS is added. It takes none away: an endpoint in the mesh is reached by the tunnel all the same.
    Disable,
    /// Mutual TLS of the mesh, and no connection without.
    IstioMutual,
    /// The agent speaks TLS for the application.
    Originate(Arc<Origination>),
    /// What is said cannot be honoured, for this reason: no connection is made.
    Unusable(Arc<str>),
}

/// TLS that the agent speaks to a server for an application that speaks plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origination {
    /// The server name that is sent; the destination's host if `None`.
    pub sni: Option<Arc<str>>,
    /// Names of which the server's certificate must have one; the destination's host, or `sni`, if there are none.
    pub names: Vec<Arc<str>>,
    /// What the server's certificate must lead to.
    pub roots: Roots,
    /// What the client shows of itself (MUTUAL).
    pub client: Option<ClientCertificate>,
    /// A file of revocation lists.
    pub crl: Option<Arc<str>>,
    /// The server's certificate is not looked at.
    pub insecure: bool,
}

/// The roots that servers are believed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those of the operating system.
    System,
    /// Those of a file.
    File(Arc<str>),
    /// Those of a Secret, or the operating system's where it has none.
    Secret(ObjectName),
    /// Any: the server is not verified.
    Unverified,
}

/// Where a client's certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    /// In two files: certificate, key.
    Files(Arc<str>, Arc<str>),
    /// In a Secret.
    Secret(ObjectName),
}

/// `trafficPolicy.connectionPool.tcp`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionPool {
    /// Connections of one client to the destination at a time.
    pub max_connections: Option<u32>,
    /// How long a connect may take.
    pub connect_timeout: Option<Duration>,
    /// How the other end is probed while nothing passes.
    pub keepalive: Option<Keepalive>,
    /// After how long without a byte a connection is ended.
    pub idle_timeout: Option<Duration>,
    /// How old a connection may grow.
    pub max_duration: Option<Duration>,
}

/// `tcpKeepalive`; what is not said is the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes without an answer that end the connection.
    pub probes: Option<u32>,
    /// Silence before the first probe.
    pub time: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
}

/// Certificates and keys of a Secret that a rule names, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsSecret {
    /// Namespace and name.
    pub name: ObjectName,
    /// The client's certificate chain.
    pub certificate: Option<Arc<[u8]>>,
    /// Its key.
    pub key: Option<Arc<[u8]>>,
    /// The roots that servers are believed by.
    pub roots: Option<Arc<[u8]>>,
    /// Revocation lists.
    pub crl: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for TlsSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSecret").field("name", &self.name).finish_non_exhaustive()
    }
}
