//! What was observed of connections, as `ambit denials`, `readiness`, `rehearsal` and `suggest` ask for it: what telemetry
//! remembers, beside what the world says by now.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use ambit_core::{
    diagnosis::{self, Cluster, Layer7},
    model::Workload,
};
use ambit_proto::admin::v1 as proto;

use super::{node::PodStatus, status::Status};
use crate::{
    discovery::World,
    telemetry::{
        DenialDetail, DenialKey, Direction, Flow, FlowSource, Operations, Outcome, OutsideKey, Place,
        RehearsalDetail, RehearsalKey, Sighting, Who,
    },
};

pub(super) fn observations(status: &Status) -> proto::ObservationsResponse {
    let observed = status.telemetry.observations();
    let world = status.feed.world();
    let pods = status.pods.load();
    let policies = observed.policies.iter().map(|(policy, action, seen)| proto::RehearsedPolicy {
        policy: policy.to_string(),
        action: (*action).to_owned(),
        judged: seen.count,
        would_refuse: seen.detail.would_refuse,
        would_admit: seen.detail.would_admit,
        matched: seen.detail.matched,
        first_seen: Some(seen.first.into()),
        last_seen: Some(seen.last.into()),
    });
    proto::ObservationsResponse {
        node: status.node.clone(),
        since: Some(observed.since.into()),
        root_namespace: status.root_namespace.clone(),
        denials: observed.denials.iter().map(|(key, seen)| denial(key, seen)).collect(),
        destinations: destinations(&world, &pods, &observed.flows),
        rehearsed_policies: policies.collect(),
        rehearsed_connections: observed.rehearsals.iter().map(|(key, seen)| rehearsed(key, seen)).collect(),
        outside: observed.outside.iter().map(|(key, seen)| outside(key, seen)).collect(),
    }
}

pub(super) fn denial(key: &DenialKey, seen: &Sighting<DenialDetail>) -> proto::Denial {
    let DenialDetail { refusal, request, source, destination } = &seen.detail;
    let (method, path) = request.as_ref().map(|(method, path)| (&**method, &**path)).unwrap_or_default();
    let direction = match key.direction {
        Direction::Outbound => proto::Direction::Outbound,
        Direction::Inbound => proto::Direction::Inbound,
    };
    let text = |text: &Option<Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
    proto::Denial {
        direction: direction.into(),
        by_peer: key.by_peer,
        source: Some(party(&key.source, source)),
        destination: Some(party(&key.destination, destination)),
        port: key.port.into(),
        code: key.reason.code().into(),
        reason: key.reason.label().to_owned(),
        policy: text(&refusal.policy),
        rule: text(&refusal.rule),
        field: text(&refusal.field),
        text: refusal.text.to_string(),
        count: seen.count,
        first_seen: Some(seen.first.into()),
        last_seen: Some(seen.last.into()),
        method: method.to_owned(),
        path: path.to_owned(),
    }
}

fn outside(key: &OutsideKey, seen: &Sighting<()>) -> proto::ObservedOutside {
    let (namespace, workload) = &key.source;
    proto::ObservedOutside {
        namespace: namespace.to_string(),
        workload: workload.to_string(),
        name: key.name.as_deref().unwrap_or_default().to_owned(),
        ip: key.address.ip().to_canonical().to_string(),
        port: key.address.port().into(),
        connections: seen.count,
        first_seen: Some(seen.first.into()),
        last_seen: Some(seen.last.into()),
    }
}

fn rehearsed(key: &RehearsalKey, seen: &Sighting<RehearsalDetail>) -> proto::RehearsedConnection {
    let outcome = match key.outcome {
        Outcome::WouldRefuse => proto::RehearsedOutcome::WouldRefuse,
        Outcome::WouldAdmit => proto::RehearsedOutcome::WouldAdmit,
        Outcome::Matched => proto::RehearsedOutcome::Matched,
    };
    let RehearsalDetail { field, source, destination } = &seen.detail;
    proto::RehearsedConnection {
        outcome: outcome.into(),
        policy: key.policy.to_string(),
        rule: key.rule.as_deref().unwrap_or_default().to_owned(),
        field: field.as_deref().unwrap_or_default().to_owned(),
        source: Some(party(&key.source, source)),
        destination: Some(party(&key.destination, destination)),
        port: key.port.into(),
        count: seen.count,
        first_seen: Some(seen.first.into()),
        last_seen: Some(seen.last.into()),
    }
}

fn party(who: &Who, place: &Place) -> proto::Party {
    let (namespace, workload) =
        who.workload.as_ref().map(|(namespace, name)| (namespace.to_string(), name.to_string())).unzip();
    proto::Party {
        namespace: namespace.unwrap_or_default(),
        workload: workload.unwrap_or_default(),
        pod: place.pod.as_ref().map(|pod| pod.name.name.to_string()).unwrap_or_default(),
        identity: who.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
        ip: place.ip.to_string(),
    }
}

/// The workloads that are in the mesh on this node, and those that were.
fn destinations(world: &World, pods: &[PodStatus], flows: &[Flow]) -> Vec<proto::ObservedDestination> {
    let clients = Clients { world, joined: world.mesh.namespaces_opted_in().cloned().collect() };
    // One pod speaks for its workload: what all policies make of one is work.
    let mut found = BTreeMap::new();
    let entry = |workload: &Workload| {
        let present = world.mesh.pod(&workload.name).filter(|present| present.uid == workload.uid);
        let policy = world.policies.compile(present.map_or(workload, |present| &**present));
        let (label, value) = workload.canonical_label().unwrap_or_default();
        let layer7 = present.map(|present| layer7(world, present)).unwrap_or_default();
        let destination = proto::ObservedDestination {
            namespace: workload.name.namespace.to_string(),
            workload: workload.workload_name().to_owned(),
            // No PeerAuthentication names port 0.
            strict: policy.is_strict(0),
            label: label.to_owned(),
            label_value: value.to_owned(),
            ports: layer7.0,
            layer7_findings: layer7.1,
            ..proto::ObservedDestination::default()
        };
        (policy, destination)
    };
    for PodStatus { workload, .. } in pods.iter().filter(|pod| pod.state.is_ok()) {
        let key = (workload.name.namespace.to_string(), workload.workload_name().to_owned());
        found.entry(key).or_insert_with(|| entry(workload)).1.pods += 1;
    }
    for flow in flows {
        let (namespace, name) = &flow.key.destination;
        let key = (namespace.to_string(), name.to_string());
        let (policy, destination) =
            found.entry(key).or_insert_with(|| entry(&flow.sighting.detail.destination));
        destination.incomplete |= flow.incomplete;
        let strict = policy.is_strict(flow.key.port);
        destination.sources.push(proto::ObservedSource { strict, ..clients.source(flow) });
    }
    let sorted = |(_, mut destination): (_, proto::ObservedDestination)| {
        destination.sources.sort_by(|a, b| order(a).cmp(&order(b)));
        destination
    };
    found.into_values().map(sorted).collect()
}

/// What is read of a pod's connections, and likely mistakes in policies about that.
fn layer7(world: &World, pod: &Arc<Workload>) -> (Vec<proto::ReadPort>, Vec<String>) {
    let cluster = Cluster { mesh: &world.mesh, policies: &world.policies };
    let Layer7 { ports, findings } = diagnosis::layer7(cluster, pod);
    let port = |port: diagnosis::ReadPort| proto::ReadPort {
        port: port.port.into(),
        reading: port.protocol.reading().to_owned(),
        read_for: port.read_for.unwrap_or_default(),
    };
    (ports.into_iter().map(port).collect(), findings.iter().map(ToString::to_string).collect())
}

fn operation((method, paths): (&str, Vec<&str>)) -> proto::ObservedOperation {
    let paths = paths.into_iter().map(str::to_owned).collect();
    proto::ObservedOperation { method: method.to_owned(), paths }
}

/// By port, then by who it is.
fn order(source: &proto::ObservedSource) -> (u32, Option<(&str, &str, &str, &str)>) {
    let party = source.party.as_ref();
    (source.port, party.map(|p| (&*p.identity, &*p.namespace, &*p.workload, &*p.ip)))
}

/// What is known of clients by now.
struct Clients<'a> {
    world: &'a World,
    /// Namespaces in the mesh.
    joined: HashSet<Arc<str>>,
}

impl Clients<'_> {
    fn source(&self, flow: &Flow) -> proto::ObservedSource {
        let Sighting { count, first, last, detail } = &flow.sighting;
        let (identity, (state, pod)) = match &flow.key.source {
            FlowSource::MutualTls(identity) => {
                (identity.to_string(), (proto::SourceState::InMesh, detail.source.pod.as_ref()))
            }
            FlowSource::Plaintext(_) => (String::new(), self.whereabouts(&detail.source)),
        };
        let text = |of: fn(&Workload) -> String| pod.map(|pod| of(pod)).unwrap_or_default();
        proto::ObservedSource {
            port: flow.key.port.into(),
            party: Some(proto::Party {
                namespace: text(|pod| pod.name.namespace.to_string()),
                workload: text(|pod| pod.workload_name().to_owned()),
                pod: text(|pod| pod.name.name.to_string()),
                identity,
                ip: detail.source.ip.to_canonical().to_string(),
            }),
            connections: *count,
            open: flow.open,
            first_seen: Some((*first).into()),
            last_seen: Some((*last).into()),
            strict: false,
            state: state.into(),
            requests_known: flow.operations.as_ref().is_some_and(|operations| !operations.is_any()),
            operations: flow.operations.iter().flat_map(Operations::iter).map(operation).collect(),
        }
    }

    /// Where a client in plaintext stands. One that is gone comes back, if at all, as its namespace says.
    fn whereabouts<'a>(&'a self, seen: &'a Place) -> (proto::SourceState, Option<&'a Arc<Workload>>) {
        let present = self.world.mesh.workload_by_ip(seen.ip);
        match (&seen.pod, present) {
            (None, None) => (proto::SourceState::Unknown, None),
            (before, Some(pod)) if before.as_ref().is_none_or(|before| before.uid == pod.uid) => {
                let state =
                    if pod.enrolled { proto::SourceState::InMesh } else { proto::SourceState::Outside };
                (state, Some(pod))
            }
            (Some(before), _) if self.joined.contains(&before.name.namespace) => {
                (proto::SourceState::InMesh, Some(before))
            }
            (before, _) => (proto::SourceState::Gone, before.as_ref()),
        }
    }
}
