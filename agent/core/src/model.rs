//! The words every other room speaks: identities, workloads, services, addresses.
//!
//! Owns no behaviour beyond parsing and printing. Values are cheap to clone and immutable once built.

mod path_normalization;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

pub use self::path_normalization::{PathNormalization, UnknownPathNormalization};

/// The opt-in label, on a namespace (`enabled`) or a pod (`disabled` opts out).
pub const DATAPLANE_LABEL: &str = "ambit.dev/dataplane";
/// The pod annotation that names its network namespace where no kubelet does: a path, or a name under `/run/netns`.
pub const NETNS_ANNOTATION: &str = "ambit.dev/netns";
/// The annotation, on a pod or its namespace, that has HTTP requests to the pod counted and logged (`enabled`), or not (`disabled`).
pub const HTTP_TELEMETRY_ANNOTATION: &str = "ambit.dev/http-telemetry";

/// A SPIFFE trust domain, such as `cluster.local`. Compared as written (SPIFFE-ID §2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = ParseSpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || text.len() > 255 || !text.chars().all(legal) {
            return Err(ParseSpiffeIdError::TrustDomain(text.chars().take(256).collect()));
        }
        Ok(Self(text.into()))
    }
}

/// A workload identity of exactly the form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`: a SPIFFE ID
/// (SPIFFE-ID specification, section 2) with the path that Istio gives to a service account. `Display` prints the URI,
/// `FromStr` takes nothing but it. As long as a pointer: every connection has two.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<SpiffeIdParts>);

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct SpiffeIdParts {
    trust_domain: TrustDomain,
    namespace: Box<str>,
    service_account: Box<str>,
}

impl SpiffeId {
    /// Builds an identity from its parts; both names must be non-empty and free of `/`.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, ParseSpiffeIdError> {
        for part in [namespace, service_account] {
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if part.is_empty() || part == "." || part == ".." || part.len() > 253 || !part.chars().all(legal)
            {
                return Err(ParseSpiffeIdError::Segment(part.chars().take(256).collect()));
            }
        }
        let (namespace, service_account) = (namespace.into(), service_account.into());
        Ok(Self(Arc::new(SpiffeIdParts { trust_domain, namespace, service_account })))
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.0.service_account
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SpiffeIdParts { trust_domain, namespace, service_account } = &*self.0;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SpiffeId {
    type Err = ParseSpiffeIdError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let shape = || ParseSpiffeIdError::Shape(uri.chars().take(256).collect());
        let rest = uri.strip_prefix("spiffe://").ok_or_else(shape)?;
        let mut parts = rest.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                Self::new(domain.parse()?, namespace, account)
            }
            _ => Err(shape()),
        }
    }
}

/// Why a text is no workload identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSpiffeIdError {
    /// Not `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[error("{0:?} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Shape(String),
    /// The trust domain has characters that SPIFFE does not allow, or none.
    #[error("{0:?} is not a trust domain (lower-case letters, digits, '.', '-', '_')")]
    TrustDomain(String),
    /// A namespace or service account is empty or has characters that Kubernetes does not allow.
    #[error("{0:?} is not a namespace or service account name")]
    Segment(String),
}

/// Where the application wanted to connect to, before capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginalDst(pub SocketAddr);

/// A pod's own address and target port: what is on the wire between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodAddr(pub SocketAddr);

/// The address a connection comes from, as the network shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub SocketAddr);

/// `namespace/name` of a namespaced Kubernetes object, of this cluster or another. Displays as that, after `<cluster>:` if it is
/// another's.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within it.
    pub name: Arc<str>,
    /// The other cluster that it is of; `None` for this one.
    pub cluster: Option<Arc<str>>,
}

impl ObjectName {
    /// Names an object of this cluster.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into(), cluster: None }
    }

    /// The object of that name in another cluster.
    #[must_use]
    pub fn in_cluster(self, cluster: &Arc<str>) -> Self {
        Self { cluster: Some(Arc::clone(cluster)), ..self }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cluster) = &self.cluster {
            write!(f, "{cluster}:")?;
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Kubernetes labels.
pub type Labels = BTreeMap<String, String>;

/// One pod as discovery knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The pod's namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`; where a manifest has none, `namespace/name`.
    pub uid: Arc<str>,
    /// The identity its service account gives it.
    pub identity: SpiffeId,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: Arc<str>,
    /// `status.podIPs`, primary first.
    pub ips: Vec<IpAddr>,
    /// Pod labels.
    pub labels: Labels,
    /// Named container ports: name to number (TCP only).
    pub named_ports: BTreeMap<String, u16>,
    /// TCP ports on the pod that its probes name, ascending: the kubelet may connect to them in plaintext.
    pub probe_ports: Vec<u16>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// In the mesh: opted in by label, not on the host network, not terminated. A peer may rely on mTLS to it.
    pub enrolled: bool,
    /// The network namespace named by annotation, if any: a path, or a name under `/run/netns`.
    pub netns: Option<Arc<str>>,
    /// HTTP requests to it are to be counted and logged, also where no policy needs them read.
    pub http_telemetry: bool,
}

impl Workload {
    /// Istio's canonical service name: label `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`,
    /// else the workload's name.
    pub fn canonical_name(&self) -> &str {
        self.canonical_label().map_or_else(|| self.workload_name(), |(_, name)| name)
    }

    /// The label that gives the canonical service name, if one does.
    pub fn canonical_label(&self) -> Option<(&'static str, &str)> {
        ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"].into_iter().find_map(|label| {
            Some((label, self.labels.get(label).filter(|value| !value.is_empty())?.as_str()))
        })
    }

    /// Istio's canonical revision: label `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`,
    /// else `latest`.
    pub fn canonical_revision(&self) -> &str {
        ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]
            .into_iter()
            .find_map(|label| self.labels.get(label).filter(|value| !value.is_empty()))
            .map_or("latest", String::as_str)
    }

    /// The name of the controlling workload as far as the pod's own name tells: a `pod-template-hash` and the random
    /// suffix behind it are cut off.
    pub fn workload_name(&self) -> &str {
        let name: &str = &self.name.name;
        match self.labels.get("pod-template-hash") {
            Some(hash) if !hash.is_empty() => {
                name.find(&format!("-{hash}-")).map_or(name, |end| &name[..end])
            }
            _ => name,
        }
    }
}

/// A service by name and DNS host, as telemetry and the tunnel's OPEN frame name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// Namespace and short name.
    pub name: ObjectName,
    /// `<name>.<namespace>.svc.<cluster domain>`.
    pub host: Arc<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_taken_in_one_form_only() {
        let id: SpiffeId = "spiffe://td1/ns/shop/sa/web".parse().unwrap();
        assert_eq!(
            (id.trust_domain().as_str(), id.namespace(), id.service_account()),
            ("td1", "shop", "web")
        );
        assert_eq!(id.to_string(), "spiffe://td1/ns/shop/sa/web");
        for bad in [
            "",
            "td1/ns/shop/sa/web",
            "spiffe://td1/ns/shop/sa/web/",
            "spiffe://td1/ns/shop/sa/",
            "spiffe:///ns/shop/sa/web",
            "spiffe://td1/sa/web/ns/shop",
            "SPIFFE://td1/ns/shop/sa/web",
            "spiffe://TD1/ns/shop/sa/web",
            "spiffe://td1/ns/../sa/web",
            "spiffe://td1/ns/shop/sa/web?x",
            "spiffe://td1/ns/sh op/sa/web",
            "spiffe://td1:8080/ns/shop/sa/web",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn canonical_names_follow_the_labels() {
        let mut pod = Workload {
            name: ObjectName::new("shop", "web-5d4f-x7k2p"),
            uid: "u".into(),
            identity: "spiffe://td1/ns/shop/sa/web".parse().unwrap(),
            node: "n1".into(),
            ips: vec![],
            labels: Labels::from([("pod-template-hash".into(), "5d4f".into())]),
            named_ports: BTreeMap::new(),
            probe_ports: vec![],
            host_network: false,
            enrolled: true,
            netns: None,
            http_telemetry: false,
        };
        assert_eq!((pod.canonical_name(), pod.canonical_revision()), ("web", "latest"));
        pod.labels.insert("app".into(), "shop-web".into());
        pod.labels.insert("version".into(), "v2".into());
        assert_eq!((pod.canonical_name(), pod.canonical_revision()), ("shop-web", "v2"));
    }
}
