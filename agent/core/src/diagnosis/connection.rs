//! Why connections from one party to another are let in or refused: each pair of pods is judged, and those alike are told once.

pub(super) mod parties;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use super::{
    Cluster, Reference, Unanswerable,
    request::{Asked, JudgedRequest, depends_on_requests},
};
use crate::{
    discovery::{PortProtocol, Service},
    model::{ObjectName, SpiffeId, Workload},
    policy::{Attribute, Decision, Explanation, Facts, Rule, WorkloadPolicy, decide},
};

/// Pairs of pods and ports that are judged; of more the first count.
const MAX_PAIRS: usize = 20_000;
/// Groups of connections that are told apart.
const MAX_CASES: usize = 64;

/// Who connects to whom.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// The client.
    pub source: &'a Reference,
    /// Where it connects to.
    pub destination: &'a Reference,
    /// The port of the service or pod; all that are known without it.
    pub port: Option<u16>,
    /// The namespace of names that have none; all namespaces without it.
    pub namespace: Option<&'a str>,
    /// The client's address, where it is not that of a pod.
    pub source_ip: Option<IpAddr>,
    /// The request that is asked about; `None` for a connection of which none is known.
    pub request: Option<Asked<'a>>,
}

/// The answer: connections that are alike, together.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Each with connections that are judged alike.
    pub cases: Vec<Case>,
    /// What bears on all of it.
    pub notes: Vec<String>,
}

/// Connections that are judged alike, and how.
#[derive(Clone, Debug)]
pub struct Case {
    /// The clients.
    pub sources: Vec<Client>,
    /// The pods that they connect to.
    pub destinations: Vec<ObjectName>,
    /// The pods' own port.
    pub port: u16,
    /// The service by which they are called, with its port.
    pub service: Option<(ObjectName, u16)>,
    /// The connection is carried in mutual TLS.
    pub mutual_tls: bool,
    /// What is spoken on the port, as far as services say it.
    pub protocol: PortProtocol,
    /// The request as it is judged, where one was asked about and somebody judges.
    pub request: Option<JudgedRequest>,
    /// None was asked about, and the verdict on HTTP depends on it: the outcome is that of a connection that is not HTTP.
    pub per_request: bool,
    /// The verdict.
    pub outcome: Outcome,
    /// What bears on it.
    pub notes: Vec<String>,
}

/// What becomes of a connection.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is judged, so; by the first of the connections that are alike.
    Judged(Box<Explanation>),
    /// The pod is not in the mesh: nobody judges.
    NotInMesh,
    /// A pod that connects to its own address is not captured.
    ToItself,
    /// The address is no pod's: nobody judges.
    Outside,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Pod, address or identity.
    pub name: String,
    /// The pod, if it is one.
    pub pod: Option<ObjectName>,
    /// What it has, or would have in the mesh.
    pub identity: Option<SpiffeId>,
    /// Its address, if that is known.
    pub ips: Vec<IpAddr>,
    /// It speaks mutual TLS with whoever does.
    pub in_mesh: bool,
}

/// Whom a question leads to.
struct Targets {
    targets: Vec<Target>,
    /// The service by which they are called.
    service: Option<Arc<Service>>,
}

/// A pod that is connected to.
struct Target {
    pod: Arc<Workload>,
    port: u16,
    /// The port of the service by which it is called.
    service_port: Option<u16>,
}

/// Answers a question.
pub fn explain(cluster: Cluster<'_>, question: &Question<'_>) -> Result<Answer, Unanswerable> {
    let mut notes = Vec::new();
    let clients = parties::clients(cluster, question, &mut notes)?;
    let Some(Targets { targets, service }) = parties::targets(cluster, question, &mut notes)? else {
        return Ok(outside(clients, question, notes));
    };
    let host = service.as_ref().map(|service| service.name.name.to_string());
    let mut judging = Judging {
        cluster,
        service: service.as_deref(),
        request: question.request,
        host: host.unwrap_or_default(),
        cases: Vec::new(),
        more: false,
    };
    let mut pairs = 0;
    for target in &targets {
        let compiled = cluster.policies.compile(&target.pod);
        for client in &clients {
            pairs += 1;
            if pairs <= MAX_PAIRS {
                judging.judge(client, target, &compiled, question.source_ip);
            }
        }
    }
    if pairs > MAX_PAIRS {
        notes.push(format!("only the first {MAX_PAIRS} of {pairs} pairs of pods and ports are told of"));
    }
    if judging.more {
        notes.push(format!(
            "only the first {MAX_CASES} ways to be judged are told of; ask for one pod, or one port"
        ));
    }
    Ok(Answer { cases: judging.cases.into_iter().map(|(_, case)| case).collect(), notes })
}

/// Nobody judges connections to what is no pod.
fn outside(sources: Vec<Client>, question: &Question<'_>, notes: Vec<String>) -> Answer {
    let case = Case {
        sources,
        destinations: Vec::new(),
        port: question.port.unwrap_or_default(),
        service: None,
        mutual_tls: false,
        protocol: PortProtocol::Unknown,
        request: None,
        per_request: false,
        outcome: Outcome::Outside,
        notes: Vec::new(),
    };
    Answer { cases: vec![case], notes }
}

/// What makes connections alike.
type Alike = (u16, Option<u16>, bool, Verdict);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    NotInMesh,
    ToItself,
    /// By this policy of the pod, and if it is a refusal, by this object and rule.
    Judged(Arc<WorkloadPolicy>, Option<[Option<Arc<str>>; 2]>),
}

struct Judging<'a> {
    cluster: Cluster<'a>,
    service: Option<&'a Service>,
    request: Option<Asked<'a>>,
    /// What a client has as the host where nothing is said: the service's name.
    host: String,
    cases: Vec<(Alike, Case)>,
    more: bool,
}

impl Judging<'_> {
    fn judge(
        &mut self,
        client: &Client,
        target: &Target,
        compiled: &Arc<WorkloadPolicy>,
        source_ip: Option<IpAddr>,
    ) {
        let in_mesh = self.cluster.is_in_mesh(&target.pod);
        let mutual_tls = client.in_mesh && in_mesh;
        // One without an address stands for all that its maker makes.
        let itself = self.service.is_none()
            && client.pod.as_ref() == Some(&target.pod.name)
            && !target.pod.ips.is_empty();
        let (source_ip, destination_ip) = addresses(client, &target.pod, source_ip);
        let facts = Facts {
            port: target.port,
            peer: client.identity.as_ref().filter(|_| mutual_tls),
            source_ip,
            destination_ip,
            request: None,
            admitted: false,
            sni: None,
        };
        let verdict = match (itself, in_mesh) {
            (true, _) => Verdict::ToItself,
            (false, false) => Verdict::NotInMesh,
            (false, true) => {
                let refused = match self.decided(compiled, &facts, &target.pod) {
                    Decision::Allow => None,
                    Decision::Deny(refusal) => Some([refusal.policy, refusal.rule]),
                };
                Verdict::Judged(Arc::clone(compiled), refused)
            }
        };
        let alike = (target.port, target.service_port, mutual_tls, verdict);
        if let Some((_, case)) = self.cases.iter_mut().find(|(key, _)| *key == alike) {
            push_new(&mut case.sources, client);
            push_new(&mut case.destinations, &target.pod.name);
        } else if self.cases.len() >= MAX_CASES {
            self.more = true;
        } else {
            let case = self.case(client, target, compiled, &facts, &alike);
            self.cases.push((alike, case));
        }
    }

    /// The verdict on the request that is asked about, else on the connection.
    fn decided(&self, compiled: &WorkloadPolicy, facts: &Facts<'_>, pod: &Workload) -> Decision {
        let Some(asked) = &self.request else { return decide(compiled, facts) };
        let found = asked.found(compiled, facts, self.host(pod));
        match &found.refusal {
            Some(refusal) => Decision::Deny(refusal.clone()),
            None => asked.facts(&found, facts, |facts| decide(compiled, facts)),
        }
    }

    fn host<'h>(&'h self, pod: &'h Workload) -> &'h str {
        if self.host.is_empty() { &pod.name.name } else { &self.host }
    }

    fn case(
        &self,
        client: &Client,
        target: &Target,
        compiled: &WorkloadPolicy,
        facts: &Facts<'_>,
        (_, _, mutual_tls, verdict): &Alike,
    ) -> Case {
        let Workload { name, labels, .. } = &*target.pod;
        let identity = client.identity.as_ref();
        let explain = |facts: &Facts<'_>| {
            Box::new(self.cluster.policies.explain(&name.namespace, labels, facts, identity))
        };
        let (outcome, request) = match (verdict, &self.request) {
            (Verdict::ToItself, _) => (Outcome::ToItself, None),
            (Verdict::NotInMesh, _) => (Outcome::NotInMesh, None),
            (Verdict::Judged(..), None) => (Outcome::Judged(explain(facts)), None),
            (Verdict::Judged(..), Some(asked)) => {
                let found = asked.found(compiled, facts, self.host(&target.pod));
                let mut explanation = asked.facts(&found, facts, explain);
                if let Some(refusal) = found.refusal {
                    explanation.decision = Decision::Deny(refusal);
                    explanation.remedies.clear();
                }
                (Outcome::Judged(explanation), Some(found.judged))
            }
        };
        let per_request = matches!(verdict, Verdict::Judged(..))
            && self.request.is_none()
            && depends_on_requests(compiled, facts);
        let mut notes = Vec::new();
        if let Outcome::Judged(explanation) = &outcome {
            if target.pod.probe_ports.contains(&target.port) {
                notes.push(format!("the kubelet's probes of port {} go past all policies", target.port));
            }
            let fields = explanation.policies.iter().flat_map(|verdict| &verdict.policy.rules);
            let by_address = fields
                .flat_map(Rule::fields)
                .any(|field| matches!(field.attribute(), Attribute::SourceIp | Attribute::RemoteIp));
            if facts.source_ip.is_unspecified() && by_address {
                notes.push(
                    "the client's address is not known, and counts as one of no block; pass --source-ip to have it judged"
                        .to_owned(),
                );
            }
        }
        let service =
            self.service.map(|service| (service.name.clone(), target.service_port.unwrap_or_default()));
        Case {
            sources: vec![client.clone()],
            destinations: vec![name.clone()],
            port: target.port,
            service,
            mutual_tls: *mutual_tls,
            protocol: self.cluster.mesh.port_protocol(&target.pod, target.port),
            request,
            per_request,
            outcome,
            notes,
        }
    }
}

/// The addresses of one family that a connection has, unspecified where they are not known.
fn addresses(client: &Client, pod: &Workload, stated: Option<IpAddr>) -> (IpAddr, IpAddr) {
    let sources = stated.as_ref().map_or(client.ips.as_slice(), std::slice::from_ref);
    let own = |ip: &&IpAddr| sources.iter().any(|source| source.is_ipv4() == ip.is_ipv4());
    let destination = pod.ips.iter().find(own).or_else(|| pod.ips.first()).copied();
    let unspecified = |ipv6: bool| match ipv6 {
        true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let family = |ip: &&IpAddr| destination.is_none_or(|to| to.is_ipv4() == ip.is_ipv4());
    let source = stated.or_else(|| client.ips.iter().find(family).copied());
    let ipv6 = source.or(destination).is_some_and(|ip| ip.is_ipv6());
    (source.unwrap_or_else(|| unspecified(ipv6)), destination.unwrap_or_else(|| unspecified(ipv6)))
}

fn push_new<T: Clone + PartialEq>(list: &mut Vec<T>, item: &T) {
    if list.last() != Some(item) && !list.contains(item) {
        list.push(item.clone());
    }
}
