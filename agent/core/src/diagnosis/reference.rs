//! Whom a question is about, as people write it: a pod, the pods of a workload, a service, an address, an identity.

use std::{collections::BTreeSet, net::IpAddr, str::FromStr, sync::Arc};

use super::Cluster;
use crate::{
    discovery::Service,
    model::{ObjectName, SpiffeId, Workload},
};

/// Names that a complaint lists.
const MAX_NAMED: usize = 5;

/// One party of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// Whoever has this identity.
    Identity(SpiffeId),
    /// Whoever has this address.
    Address(IpAddr),
    /// An object.
    Object {
        /// What it is, if that was said.
        kind: Option<ObjectKind>,
        /// Its namespace, if that was said.
        namespace: Option<Arc<str>>,
        /// Its name.
        name: Arc<str>,
    },
}

/// What a name can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// A pod.
    Pod,
    /// A Deployment, a StatefulSet or whatever else makes pods.
    Workload,
    /// A service.
    Service,
    /// A service account.
    ServiceAccount,
}

/// What a party does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It connects.
    Source,
    /// It is connected to, on this port if one was said.
    Destination(Option<u16>),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// The text says nothing that can be looked for.
    #[error("{0:?} is no pod, NAMESPACE/POD, deploy/NAME, svc/NAME, address or spiffe:// identity")]
    Unreadable(String),
    /// There is no such object.
    #[error("there is no {what}{hint}")]
    NotFound {
        /// What was looked for.
        what: String,
        /// Where it may be instead.
        hint: String,
    },
    /// Several namespaces have one.
    #[error("{name} is in several namespaces ({namespaces}): write NAMESPACE/{name}, or pass --namespace")]
    Ambiguous {
        /// The name.
        name: String,
        /// Some of the namespaces.
        namespaces: String,
    },
    /// The service has no such port.
    #[error("service {service} has no port {port}: it has {has}. No connection to it is let through")]
    NoSuchPort {
        /// Its name.
        service: ObjectName,
        /// What was asked for.
        port: u16,
        /// What it has.
        has: String,
    },
    /// It is not known which port is meant.
    #[error("no port of {0} is known: say which one, as in {0}:8080")]
    NoPort(String),
}

/// Whom a reference leads to.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) pods: Vec<Arc<Workload>>,
    /// The service by which they are called.
    pub(super) service: Option<Arc<Service>>,
}

/// Reads `DST[:PORT]`.
pub fn destination(text: &str) -> Result<(Reference, Option<u16>), Unanswerable> {
    let whole = || text.parse().map(|reference| (reference, None));
    if text.parse::<IpAddr>().is_ok() {
        return whole();
    }
    match text.rsplit_once(':') {
        Some((party, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            let bare = party.strip_prefix('[').and_then(|party| party.strip_suffix(']')).unwrap_or(party);
            let port = port.parse().map_err(|_| Unanswerable::Unreadable(text.to_owned()))?;
            Ok((bare.parse()?, Some(port)))
        }
        _ => whole(),
    }
}

impl FromStr for Reference {
    type Err = Unanswerable;

    fn from_str(text: &str) -> Result<Self, Unanswerable> {
        let unreadable = || Unanswerable::Unreadable(text.chars().take(300).collect());
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Address(ip.to_canonical()));
        }
        if text.contains("://") {
            return text.parse().map(Self::Identity).map_err(|_| unreadable());
        }
        let legal = |part: &&str| {
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            !part.is_empty() && part.len() <= 253 && part.chars().all(legal)
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(legal) {
            return Err(unreadable());
        }
        let object = |kind, namespace: Option<&str>, name: &str| {
            Ok(Self::Object { kind, namespace: namespace.map(Arc::from), name: name.into() })
        };
        match parts[..] {
            [name] => match name.split('.').collect::<Vec<_>>()[..] {
                [service, namespace, "svc", ..] => {
                    object(Some(ObjectKind::Service), Some(namespace), service)
                }
                _ => object(None, None, name),
            },
            [first, name] => match ObjectKind::named(first) {
                Some(kind) => object(Some(kind), None, name),
                None => object(None, Some(first), name),
            },
            [namespace, kind, name] => {
                object(Some(ObjectKind::named(kind).ok_or_else(unreadable)?), Some(namespace), name)
            }
            _ => Err(unreadable()),
        }
    }
}

impl ObjectKind {
    /// The kind that kubectl knows by this name.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "pod" | "pods" | "po" => Self::Pod,
            "deploy" | "deployment" | "deployments" | "statefulset" | "statefulsets" | "sts"
            | "daemonset" | "daemonsets" | "ds" | "replicaset" | "replicasets" | "rs" | "job" | "jobs"
            | "cronjob" | "cronjobs" | "cj" | "workload" => Self::Workload,
            "svc" | "service" | "services" => Self::Service,
            "sa" | "serviceaccount" | "serviceaccounts" => Self::ServiceAccount,
            _ => return None,
        })
    }

    fn word(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Workload => "workload",
            Self::Service => "service",
            Self::ServiceAccount => "service account with pods",
        }
    }
}

impl Cluster<'_> {
    /// The pods with that identity that are in the mesh.
    pub(super) fn bearers(&self, identity: &SpiffeId) -> Vec<Arc<Workload>> {
        let of_namespace = self.mesh.pods_of(identity.namespace());
        of_namespace.filter(|pod| pod.identity == *identity && self.is_in_mesh(pod)).cloned().collect()
    }

    /// Whether the pod is to be in the mesh, be it that it has no address yet.
    pub(super) fn is_in_mesh(&self, pod: &Workload) -> bool {
        self.mesh.opts_in(&pod.name) == Some(true)
    }

    /// Whom a reference by name leads to; `namespace` counts where it has none.
    pub(super) fn find(
        &self,
        kind: Option<ObjectKind>,
        namespace: Option<&str>,
        name: &str,
        role: Role,
    ) -> Result<Found, Unanswerable> {
        let kinds = match (kind, role) {
            (Some(kind), _) => vec![kind],
            (None, Role::Source) => {
                vec![ObjectKind::Pod, ObjectKind::Workload, ObjectKind::Service, ObjectKind::ServiceAccount]
            }
            (None, Role::Destination(_)) => vec![ObjectKind::Service, ObjectKind::Pod, ObjectKind::Workload],
        };
        let one = |namespace: &str| {
            kinds.iter().find_map(|kind| self.of_kind(*kind, namespace, name, role, kinds.len() == 1))
        };
        if let Some(namespace) = namespace {
            return one(namespace).ok_or_else(|| self.not_found(kind, Some(namespace), name));
        }
        let found: Vec<(Arc<str>, Found)> = self
            .namespaces()
            .into_iter()
            .filter_map(|space| Some((Arc::clone(&space), one(&space)?)))
            .collect();
        match found.len() {
            0 => Err(self.not_found(kind, None, name)),
            1 => Ok(found.into_iter().next().map(|(_, found)| found).unwrap_or_default()),
            _ => {
                let namespaces = found.iter().map(|(namespace, _)| &**namespace);
                Err(Unanswerable::Ambiguous { name: name.to_owned(), namespaces: listed(namespaces) })
            }
        }
    }

    fn of_kind(
        &self,
        kind: ObjectKind,
        namespace: &str,
        name: &str,
        role: Role,
        only: bool,
    ) -> Option<Found> {
        let pods = |is: &dyn Fn(&Workload) -> bool| -> Option<Found> {
            let pods: Vec<_> = self.mesh.pods_of(namespace).filter(|pod| is(pod)).cloned().collect();
            (!pods.is_empty()).then_some(Found { pods, service: None })
        };
        match kind {
            ObjectKind::Pod => pods(&|pod| *pod.name.name == *name),
            ObjectKind::Workload => pods(&|pod| is_of_workload(pod, name)),
            ObjectKind::ServiceAccount => pods(&|pod| pod.identity.service_account() == name),
            ObjectKind::Service => {
                let service = self.mesh.service(&ObjectName::new(namespace, name))?;
                // A workload often bears the name of its service; the port tells which is meant.
                let has = |port: u16| service.ports.iter().any(|own| own.port == port);
                let namesake = |pod: &Workload| *pod.name.name == *name || is_of_workload(pod, name);
                if matches!(role, Role::Destination(Some(port)) if !only && !has(port))
                    && pods(&namesake).is_some()
                {
                    return None;
                }
                let mut behind: Vec<Arc<Workload>> = Vec::new();
                for port in &service.ports {
                    behind.extend(self.mesh.behind(service, port.port).into_iter().map(|(pod, _)| pod));
                }
                behind.sort_by(|one, other| one.name.cmp(&other.name));
                behind.dedup_by(|one, other| one.name == other.name);
                Some(Found { pods: behind, service: Some(Arc::clone(service)) })
            }
        }
    }

    fn not_found(&self, kind: Option<ObjectKind>, namespace: Option<&str>, name: &str) -> Unanswerable {
        let kind = kind.map_or("pod, workload or service", ObjectKind::word);
        let place =
            namespace.map_or(" in any namespace".to_owned(), |space| format!(" in namespace {space}"));
        let what = format!("{kind} {name}{place}");
        let elsewhere: BTreeSet<&str> = self
            .mesh
            .pods()
            .filter(|pod| *pod.name.name == *name || is_of_workload(pod, name))
            .map(|pod| &*pod.name.namespace)
            .collect();
        let unknown = namespace.filter(|space| !self.mesh.has_namespace(space));
        let mut hint = unknown.map(|_| "; nothing of that namespace is known".to_owned()).unwrap_or_default();
        if !elsewhere.is_empty() {
            hint += &format!("; there is one in {}", listed(elsewhere.into_iter()));
        }
        Unanswerable::NotFound { what, hint }
    }

    fn namespaces(&self) -> BTreeSet<Arc<str>> {
        let pods = self.mesh.pods().map(|pod| &pod.name.namespace);
        let services = self.mesh.services().map(|service| &service.name.namespace);
        pods.chain(services).cloned().collect()
    }
}

/// Whether the pod is one of those that a workload makes, as far as its name and labels tell.
fn is_of_workload(pod: &Workload, name: &str) -> bool {
    if pod.workload_name() == name || pod.canonical_name() == name {
        return true;
    }
    let random = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let Some(rest) = pod.name.name.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    let ordinal = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    let of_set = rest.split_once('-').is_some_and(|(hash, own)| random(hash, 6..=10) && random(own, 5..=5));
    ordinal || random(rest, 5..=5) || of_set
}

/// Some names, and how many more there are.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
