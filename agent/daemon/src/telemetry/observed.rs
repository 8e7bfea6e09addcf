//! What is remembered of connections for those who write policies: what was refused, who came, and what policies that decide
//! nothing would have made of it.
//!
//! Fed with what has been decided, never asked in a decision. Constant memory: each table has its bound, shared fairly by the
//! pods of the node.

mod operations;
mod sightings;
#[cfg(test)]
mod tests;

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use ambit_core::{
    model::{ObjectName, SpiffeId, Workload},
    reason::{Reason, Refusal, Rehearsed},
};

use super::{Direction, LiveConnection, Meta, Party};
pub(crate) use operations::Operations;
pub(crate) use sightings::Sighting;
use sightings::Sightings;

/// Different refusals that are kept; one takes about 1 KB.
const DENIALS: usize = 2_048;
/// Pairs of a source and a port of a workload; one takes about 400 bytes.
const FLOWS: usize = 4_096;
/// Flows whose requests are known; one takes 10 KB at most.
const REQUESTS: usize = 1_024;
/// Different outcomes of rehearsals.
const REHEARSALS: usize = 2_048;
/// Different destinations outside, of one workload each.
const OUTSIDE: usize = 2_048;
/// Policies that are rehearsed.
const POLICIES: usize = 1_024;

#[derive(Debug)]
pub(super) struct Observed {
    since: SystemTime,
    hasher: RandomState,
    denials: Mutex<Sightings<DenialKey, DenialDetail>>,
    flows: Mutex<Sightings<FlowKey, FlowDetail>>,
    requests: Mutex<Sightings<FlowKey, Requests>>,
    policies: Mutex<Sightings<(ObjectName, &'static str), Tally>>,
    rehearsals: Mutex<Sightings<RehearsalKey, RehearsalDetail>>,
    outside: Mutex<Sightings<OutsideKey, ()>>,
}

/// Everything that is remembered, at one moment.
#[derive(Debug)]
pub(crate) struct Observations {
    /// Since when there has been somebody to watch.
    pub(crate) since: SystemTime,
    /// Newest first.
    pub(crate) denials: Vec<(DenialKey, Sighting<DenialDetail>)>,
    pub(crate) flows: Vec<Flow>,
    pub(crate) policies: Vec<(ObjectName, &'static str, Sighting<Tally>)>,
    /// Newest first.
    pub(crate) rehearsals: Vec<(RehearsalKey, Sighting<RehearsalDetail>)>,
    pub(crate) outside: Vec<(OutsideKey, Sighting<()>)>,
}

/// A destination outside, and who goes there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OutsideKey {
    /// Namespace and name of the workload.
    pub(crate) source: (Arc<str>, Box<str>),
    /// The name in the application's TLS.
    pub(crate) name: Option<Box<str>>,
    pub(crate) address: SocketAddr,
}

/// One end, as it is told from others: by its workload, not by each of its pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Who {
    /// Namespace and name of the workload, if there was a pod at the address.
    pub(crate) workload: Option<(Arc<str>, Box<str>)>,
    /// What it proved.
    pub(crate) identity: Option<SpiffeId>,
    /// The address, where no pod is known at it.
    stranger: Option<IpAddr>,
}

/// Where one end was seen last.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) pod: Option<Arc<Workload>>,
    pub(crate) ip: IpAddr,
}

/// What tells one refusal from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DenialKey {
    pub(crate) direction: Direction,
    pub(crate) by_peer: bool,
    pub(crate) source: Who,
    pub(crate) destination: Who,
    pub(crate) port: u16,
    pub(crate) reason: Reason,
    policy: Option<Arc<str>>,
    rule: Option<Arc<str>>,
}

/// The refusal seen last, and between whom.
#[derive(Clone, Debug)]
pub(crate) struct DenialDetail {
    pub(crate) refusal: Refusal,
    /// Method and path, where a request was refused, not a connection.
    pub(crate) request: Option<(Box<str>, Box<str>)>,
    pub(crate) source: Place,
    pub(crate) destination: Place,
}

/// Who comes where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    /// Namespace and name of the workload.
    pub(crate) destination: (Arc<str>, Box<str>),
    pub(crate) port: u16,
    pub(crate) source: FlowSource,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FlowSource {
    MutualTls(SpiffeId),
    Plaintext(IpAddr),
}

#[derive(Clone, Debug)]
pub(crate) struct FlowDetail {
    pub(crate) source: Place,
    pub(crate) destination: Arc<Workload>,
}

/// What the connections of a flow have carried.
#[derive(Clone, Debug, Default)]
struct Requests {
    /// Those on which there was a request.
    connections: u64,
    operations: Operations,
}

/// Connections of one source to one port of a workload.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    pub(crate) sighting: Sighting<FlowDetail>,
    /// How many of them are open.
    pub(crate) open: u32,
    /// The workload has had more flows than are kept.
    pub(crate) incomplete: bool,
    /// What was requested; `None` unless that is known of all its connections.
    pub(crate) operations: Option<Operations>,
}

/// What became of the connections that a policy was rehearsed on; the rest would not have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) would_refuse: u64,
    pub(crate) would_admit: u64,
    pub(crate) matched: u64,
}

/// What tells one outcome of a rehearsal from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RehearsalKey {
    pub(crate) outcome: Outcome,
    pub(crate) policy: Arc<str>,
    pub(crate) rule: Option<Arc<str>>,
    pub(crate) source: Who,
    pub(crate) destination: Who,
    pub(crate) port: u16,
}

/// What a policy that decides nothing would have changed, or has matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    WouldRefuse,
    WouldAdmit,
    Matched,
}

#[derive(Clone, Debug)]
pub(crate) struct RehearsalDetail {
    /// The field that would not hold.
    pub(crate) field: Option<Arc<str>>,
    pub(crate) source: Place,
    pub(crate) destination: Place,
}

impl Observed {
    pub(super) fn new(since: SystemTime) -> Self {
        Self {
            since,
            hasher: RandomState::new(),
            denials: Mutex::new(Sightings::new(DENIALS)),
            flows: Mutex::new(Sightings::new(FLOWS)),
            requests: Mutex::new(Sightings::new(REQUESTS)),
            policies: Mutex::new(Sightings::new(POLICIES)),
            rehearsals: Mutex::new(Sightings::new(REHEARSALS)),
            outside: Mutex::new(Sightings::new(OUTSIDE)),
        }
    }

    /// A connection was refused or cut.
    pub(super) fn refused(&self, meta: &Meta, refusal: &Refusal, by_peer: bool, now: SystemTime) {
        self.denied(meta, refusal, by_peer, None, now);
    }

    /// A request was refused; its method and path where they could be read.
    pub(super) fn refused_request(
        &self,
        meta: &Meta,
        refusal: &Refusal,
        request: Option<(Box<str>, Box<str>)>,
        now: SystemTime,
    ) {
        self.denied(meta, refusal, false, request, now);
    }

    fn denied(
        &self,
        meta: &Meta,
        refusal: &Refusal,
        by_peer: bool,
        request: Option<(Box<str>, Box<str>)>,
        now: SystemTime,
    ) {
        let key = DenialKey {
            direction: meta.direction,
            by_peer,
            source: source_of(meta),
            destination: destination_of(meta),
            port: meta.destination_addr.port(),
            reason: refusal.reason,
            policy: refusal.policy.clone(),
            rule: refusal.rule.clone(),
        };
        let ours = match meta.direction {
            Direction::Outbound => &key.source,
            Direction::Inbound => &key.destination,
        };
        let party = self.party(&ours.workload);
        let (source, destination) = places(meta);
        let detail = DenialDetail { refusal: refusal.clone(), request, source, destination };
        held(&self.denials).see(party, key, now, |_| detail);
    }

    /// A connection was let in.
    pub(super) fn opened(&self, meta: &Meta, now: SystemTime) {
        let Some((key, destination)) = flow(meta) else { return };
        let detail = FlowDetail { source: places(meta).0, destination: destination.clone() };
        let party = self.party(&key.destination);
        held(&self.flows).see(party, key, now, |_| detail);
    }

    /// A connection carries its first request.
    pub(super) fn carries_requests(&self, meta: &Meta, now: SystemTime) {
        self.amend(meta, now, |requests| requests.connections += 1);
    }

    /// A request was let in.
    pub(super) fn requested(&self, meta: &Meta, method: &str, path: &str, now: SystemTime) {
        self.amend(meta, now, |requests| requests.operations.add(method, path));
    }

    fn amend(&self, meta: &Meta, now: SystemTime, amend: impl FnOnce(&mut Requests)) {
        let Some((key, _)) = flow(meta) else { return };
        let party = self.party(&key.destination);
        held(&self.requests).see(party, key, now, |before| {
            let mut requests = before.unwrap_or_default();
            amend(&mut requests);
            requests
        });
    }

    /// A connection went to what is outside.
    pub(super) fn outside(&self, meta: &Meta, name: Option<&str>, now: SystemTime) {
        let Some(client) = &meta.source.workload else { return };
        let source = (client.name.namespace.clone(), Box::from(client.workload_name()));
        let party = self.party(&source);
        let key = OutsideKey { source, name: name.map(Into::into), address: meta.destination_addr };
        held(&self.outside).see(party, key, now, |_| ());
    }

    /// A policy that decides nothing was tried on a connection.
    pub(super) fn rehearsed(
        &self,
        meta: &Meta,
        policy: &ObjectName,
        action: &'static str,
        rehearsed: Rehearsed,
        now: SystemTime,
    ) {
        let party = self.party(&policy.namespace);
        held(&self.policies).see(party, (policy.clone(), action), now, |before: Option<Tally>| {
            let mut tally = before.unwrap_or_default();
            match rehearsed {
                Rehearsed::Unchanged => {}
                Rehearsed::WouldRefuse => tally.would_refuse += 1,
                Rehearsed::WouldAdmit(_) => tally.would_admit += 1,
                Rehearsed::Audited(_) => tally.matched += 1,
            }
            tally
        });
        let (outcome, at) = match rehearsed {
            Rehearsed::WouldAdmit(at) => (Outcome::WouldAdmit, at),
            Rehearsed::Audited(at) => (Outcome::Matched, at),
            Rehearsed::Unchanged | Rehearsed::WouldRefuse => return,
        };
        let rule = Some(format!("rules[{at}]").into());
        self.outcome(meta, outcome, policy.to_string().into(), rule, None, now);
    }

    /// A connection that is let in would not be.
    pub(super) fn would_be_refused(&self, meta: &Meta, refusal: &Refusal, now: SystemTime) {
        let policy = refusal.policy.clone().unwrap_or_default();
        let (rule, field) = (refusal.rule.clone(), refusal.field.clone());
        self.outcome(meta, Outcome::WouldRefuse, policy, rule, field, now);
    }

    fn outcome(
        &self,
        meta: &Meta,
        outcome: Outcome,
        policy: Arc<str>,
        rule: Option<Arc<str>>,
        field: Option<Arc<str>>,
        now: SystemTime,
    ) {
        let (source, destination) = (source_of(meta), destination_of(meta));
        let party = self.party(&destination.workload);
        let port = meta.destination_addr.port();
        let key = RehearsalKey { outcome, policy, rule, source, destination, port };
        let (source, destination) = places(meta);
        let detail = RehearsalDetail { field, source, destination };
        held(&self.rehearsals).see(party, key, now, |_| detail);
    }

    /// Refusals, newest first, at most so many.
    pub(super) fn denials(&self, most: usize, now: SystemTime) -> Vec<(DenialKey, Sighting<DenialDetail>)> {
        let mut denials = all(&self.denials, now);
        denials.sort_by_key(|(_, sighting)| std::cmp::Reverse(sighting.last));
        denials.truncate(most);
        denials
    }

    /// Everything; connections that are `live` are being seen.
    pub(super) fn snapshot(&self, live: &[LiveConnection], now: SystemTime) -> Observations {
        let mut open = std::collections::HashMap::<FlowKey, u32>::new();
        for (key, _) in live.iter().filter_map(|connection| flow(&connection.meta)) {
            *open.entry(key).or_default() += 1;
        }
        let mut flows: Vec<Flow> = all(&self.flows, now)
            .into_iter()
            .map(|(key, mut sighting)| {
                let open = open.get(&key).copied().unwrap_or_default();
                if open > 0 {
                    sighting.last = now;
                }
                Flow { key, sighting, open, incomplete: false, operations: None }
            })
            .collect();
        {
            let kept = held(&self.flows);
            for flow in &mut flows {
                flow.incomplete = kept.has_lost(self.party(&flow.key.destination), now);
            }
        }
        let mut requests: std::collections::HashMap<_, _> = all(&self.requests, now).into_iter().collect();
        for flow in &mut flows {
            let requests = requests.remove(&flow.key).map(|seen| seen.detail);
            let all_known = requests.filter(|requests| requests.connections >= flow.sighting.count);
            flow.operations = all_known.map(|requests| requests.operations);
        }
        let mut rehearsals = all(&self.rehearsals, now);
        rehearsals.sort_by_key(|(_, sighting)| std::cmp::Reverse(sighting.last));
        let policies = all(&self.policies, now);
        Observations {
            since: self.since,
            denials: self.denials(DENIALS, now),
            flows,
            policies: policies.into_iter().map(|((name, action), seen)| (name, action, seen)).collect(),
            rehearsals,
            outside: all(&self.outside, now),
        }
    }

    /// Who shares the room of a table. That two may have the same number does no harm.
    fn party<T: std::hash::Hash>(&self, of: &T) -> u64 {
        self.hasher.hash_one(of)
    }
}

impl Who {
    fn of(party: &Party, ip: IpAddr, proven: bool) -> Self {
        let workload =
            party.workload.as_ref().map(|pod| (pod.name.namespace.clone(), pod.workload_name().into()));
        Self {
            stranger: workload.is_none().then_some(ip),
            workload,
            identity: party.identity.clone().filter(|_| proven),
        }
    }
}

fn source_of(meta: &Meta) -> Who {
    Who::of(&meta.source, meta.source_addr.ip(), is_proven(meta))
}

fn destination_of(meta: &Meta) -> Who {
    Who::of(&meta.destination, meta.destination_addr.ip(), is_proven(meta))
}

fn is_proven(meta: &Meta) -> bool {
    meta.security.is_proven()
}

fn places(meta: &Meta) -> (Place, Place) {
    let place = |party: &Party, ip| Place { pod: party.workload.clone(), ip };
    (place(&meta.source, meta.source_addr.ip()), place(&meta.destination, meta.destination_addr.ip()))
}

/// The flow that a connection to one of our pods is of. A pod that calls itself is met on its way out.
fn flow(meta: &Meta) -> Option<(FlowKey, &Arc<Workload>)> {
    let destination = meta.destination.workload.as_ref()?;
    let source = match meta.direction {
        Direction::Inbound => match &meta.source.identity {
            Some(identity) => FlowSource::MutualTls(identity.clone()),
            None => FlowSource::Plaintext(meta.source_addr.ip().to_canonical()),
        },
        Direction::Outbound => {
            let client = meta.source.workload.as_ref()?;
            let itself = client.name == destination.name && client.uid == destination.uid;
            FlowSource::MutualTls(itself.then(|| client.identity.clone())?)
        }
    };
    let workload = (destination.name.namespace.clone(), destination.workload_name().into());
    Some((FlowKey { destination: workload, port: meta.destination_addr.port(), source }, destination))
}

fn all<K: Clone + Eq + std::hash::Hash, D: Clone>(
    table: &Mutex<Sightings<K, D>>,
    now: SystemTime,
) -> Vec<(K, Sighting<D>)> {
    held(table).recent(now).map(|(key, sighting)| (key.clone(), sighting.clone())).collect()
}

fn held<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic may leave half done is one entry of a view.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
