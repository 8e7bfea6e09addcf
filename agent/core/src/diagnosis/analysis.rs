//! What in the policies is likely a mistake: they say it well, and do not do what was meant.
//!
//! Promises codes that stay the same. That an object cannot be read is told where it is read.

mod egress;
mod modes;
mod names;
mod providers;
mod requests;
mod rules;
mod targets;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use super::Cluster;
use crate::{
    discovery::{Service, ServicePort},
    model::{ObjectName, Workload},
    policy::{AuthorizationPolicy, RequestAuthentication, Target},
};

/// Findings that are told; of more the first count.
const MAX_FINDINGS: usize = 5_000;

/// What is likely a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which kind of mistake: lower case, words joined by dashes.
    pub code: &'static str,
    /// How bad it is.
    pub level: Level,
    /// The object.
    pub subject: Subject,
    /// The field in it, if one is meant.
    pub field: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
}

/// How bad a mistake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Likely not what was meant.
    Warning,
    /// It cannot do what it says.
    Error,
}

/// An object. Displays as `AuthorizationPolicy shop/web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Its kind.
    pub kind: &'static str,
    /// Its name.
    pub name: ObjectName,
}

/// Every code with what it says, for those who list them.
pub const CODES: &[(&str, &str)] = &[
    ("selects-nothing", "a selector or target matches no pod"),
    ("not-in-mesh", "the pods that a policy selects are not in the mesh, and nobody enforces it"),
    ("service-port", "a port is that of a service, and the pods listen on another"),
    ("undeclared-port", "no pod that a policy selects declares a port"),
    ("http-rule-on-other-port", "a rule needs HTTP on a port that carries something else"),
    ("deny-beyond-http", "a DENY about requests refuses all that is no HTTP on ports that may carry it"),
    ("host-without-port", "a host matches calls to port 80 only"),
    ("no-issuer", "a rule asks for a token where no RequestAuthentication judges one"),
    ("token-not-demanded", "a RequestAuthentication lets in who has no token"),
    ("unknown-provider", "CUSTOM names a provider that is not configured"),
    ("permissive-under-strict", "a namespace or workload takes plaintext though the mesh is STRICT"),
    ("plaintext-evades-deny", "a DENY by identity, on pods that take plaintext"),
    (
        "ignored-duplicate",
        "another PeerAuthentication for the same pods is older, and this one has no effect",
    ),
    ("never-matches", "a policy or value that can match nothing"),
    ("shadowed-rule", "a DENY refuses all that a rule of an ALLOW lets in"),
    ("redundant-rule", "another rule matches whatever this one does"),
    ("unknown-namespace", "a namespace of which nothing is known"),
    ("unknown-principal", "a service account that no pod has"),
    ("unknown-host", "a DestinationRule for a host that no service and no ServiceEntry has"),
    ("mtls-outside-mesh", "a DestinationRule demands the mesh's mutual TLS to what is not in the mesh"),
    ("tls-to-plaintext-port", "a DestinationRule has agents speak TLS to a port that speaks in the clear"),
    ("tls-in-tls", "a DestinationRule has agents speak TLS around the application's own"),
    ("overlapping-address", "an address of a ServiceEntry is the cluster's, or another entry's"),
    ("rule-without-effect", "a DestinationRule that changes no connection"),
    (
        "hidden-host",
        "a ServiceEntry states the host of a service, or of an older entry, and does not count for it",
    ),
    ("unselected-workload", "a WorkloadEntry that no ServiceEntry selects"),
    ("provider-not-there", "an external provider is at a service, or a port of one, that is not there"),
    ("provider-asked-about-itself", "a CUSTOM policy is for the pods of a provider, and nobody can ask it"),
];

/// Looks for mistakes in all policies; by object, the worst of each first.
pub fn analyze(cluster: Cluster<'_>) -> Vec<Finding> {
    let mut report = Report {
        cluster,
        only: None,
        called: called(cluster, cluster.mesh.services()),
        findings: Vec::new(),
    };
    targets::look(&mut report);
    modes::look(&mut report);
    rules::look(&mut report);
    requests::look(&mut report);
    names::look(&mut report);
    egress::look(&mut report);
    providers::look(&mut report);
    let mut findings = report.findings;
    findings.sort_by(|one, other| {
        let key = |finding: &Finding| (finding.subject.clone(), std::cmp::Reverse(finding.level));
        key(one).cmp(&key(other)).then_with(|| one.field.cmp(&other.field))
    });
    findings.dedup();
    findings.truncate(MAX_FINDINGS);
    findings
}

/// Looks for mistakes about requests, tokens and providers in the policies for one pod.
pub(super) fn layer7(cluster: Cluster<'_>, pod: &Workload) -> Vec<Finding> {
    let Some(pod) = cluster.mesh.pod(&pod.name) else { return Vec::new() };
    let called = called(cluster, cluster.mesh.services_of(&pod.name));
    let mut report = Report { cluster, only: Some(pod), called, findings: Vec::new() };
    targets::layer7(&mut report);
    requests::look(&mut report);
    providers::look(&mut report);
    let mut findings = report.findings;
    findings.sort_by(|one, other| other.level.cmp(&one.level).then_with(|| one.subject.cmp(&other.subject)));
    findings.dedup();
    findings
}

struct Report<'a> {
    cluster: Cluster<'a>,
    /// The only pod that is looked at.
    only: Option<&'a Arc<Workload>>,
    /// By which ports of services each pod is called, looked up once for all policies.
    called: HashMap<&'a ObjectName, Vec<Called<'a>>>,
    findings: Vec<Finding>,
}

/// A port of a service that leads to a pod.
struct Called<'a> {
    service: &'a ObjectName,
    port: &'a ServicePort,
    /// The pod's own port behind it.
    target: u16,
}

fn called<'a>(
    cluster: Cluster<'a>,
    services: impl IntoIterator<Item = &'a Arc<Service>>,
) -> HashMap<&'a ObjectName, Vec<Called<'a>>> {
    let mut called: HashMap<&ObjectName, Vec<Called<'_>>> = HashMap::new();
    for service in services {
        for port in &service.ports {
            for (pod, target) in cluster.mesh.behind(service, port.port) {
                if let Some(pod) = cluster.mesh.pod(&pod.name) {
                    called.entry(&pod.name).or_default().push(Called {
                        service: &service.name,
                        port,
                        target,
                    });
                }
            }
        }
    }
    called
}

impl<'a> Report<'a> {
    fn add(&mut self, code: &'static str, level: Level, subject: &Subject, field: &str, message: String) {
        debug_assert!(CODES.iter().any(|(known, _)| *known == code), "{code} is not listed");
        // Room for what is sorted out later.
        if self.findings.len() < 4 * MAX_FINDINGS {
            let field = Some(field).filter(|field| !field.is_empty()).map(str::to_owned);
            self.findings.push(Finding { code, level, subject: subject.clone(), field, message });
        }
    }

    /// By which ports of services a pod is called.
    fn called(&self, pod: &Workload) -> &[Called<'a>] {
        self.called.get(&pod.name).map_or(&[], Vec::as_slice)
    }

    /// The pods that an object of that name and target is for.
    fn pods(&self, name: &ObjectName, target: &Target) -> Vec<&'a Arc<Workload>> {
        if let Some(pod) = self.only {
            return if self.cluster.is_for(name, target, pod) { vec![pod] } else { Vec::new() };
        }
        let mesh = self.cluster.mesh;
        let everywhere = name.namespace == *self.cluster.policies.root_namespace();
        let near: Box<dyn Iterator<Item = &'a Arc<Workload>>> = match everywhere {
            true => Box::new(mesh.pods()),
            false => Box::new(mesh.pods_of(&name.namespace)),
        };
        near.filter(|pod| self.cluster.is_for(name, target, pod)).collect()
    }

    /// The AuthorizationPolicies that can be read.
    fn readable(&self) -> Vec<&'a Arc<AuthorizationPolicy>> {
        let policies = self.cluster.policies;
        let readable = |policy: &&'a Arc<AuthorizationPolicy>| policy.doubt.is_none();
        match self.only {
            Some(pod) => {
                policies.authorizations_for(&pod.name.namespace, &pod.labels).filter(readable).collect()
            }
            None => policies.authorizations().filter(readable).collect(),
        }
    }

    /// The RequestAuthentications that can be read.
    fn readable_requests(&self) -> Vec<&'a Arc<RequestAuthentication>> {
        let policies = self.cluster.policies;
        let readable = |request: &&'a Arc<RequestAuthentication>| request.doubt.is_none();
        match self.only {
            Some(pod) => policies
                .request_authentications_for(&pod.name.namespace, &pod.labels)
                .filter(readable)
                .collect(),
            None => policies.request_authentications().filter(readable).collect(),
        }
    }
}

impl Subject {
    fn authorization(policy: &AuthorizationPolicy) -> Self {
        Self { kind: "AuthorizationPolicy", name: policy.name.clone() }
    }

    fn request(name: &ObjectName) -> Self {
        Self { kind: "RequestAuthentication", name: name.clone() }
    }

    fn peer(name: &ObjectName) -> Self {
        Self { kind: "PeerAuthentication", name: name.clone() }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// `warning no-issuer: AuthorizationPolicy shop/web, spec.rules[0]: what is wrong`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, level, subject, field, message } = self;
        write!(f, "{} {code}: {subject}", level.as_str())?;
        if let Some(field) = field {
            write!(f, ", {field}")?;
        }
        write!(f, ": {message}")
    }
}

impl Level {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Numbers in words, as `8080, 9090`.
fn numbers(ports: &BTreeSet<u16>) -> String {
    let texts: Vec<String> = ports.iter().map(ToString::to_string).collect();
    super::reference::listed(texts.iter().map(String::as_str))
}
