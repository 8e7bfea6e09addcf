//! What is wrong in a source: within bounds, in the order of origins, and in the log once.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ambit_core::model::ObjectName;
use tracing::{info, warn};

use super::{InForce, Key, Ledger, MAX_OBJECTS};
use crate::discovery::{
    Origin, Problem,
    kinds::{FieldError, Kind},
};

/// Problems of one origin that are named; the rest are counted.
pub(super) const MAX_ORIGIN_PROBLEMS: usize = 100;
/// Pods of one UID that are named in a problem.
const MAX_NAMED_PODS: usize = 3;
/// Addresses that two clusters claim and that are named.
const MAX_NAMED_ADDRESSES: usize = 10;
/// Problems of one source that are named; the rest are counted.
const MAX_SOURCE_PROBLEMS: usize = 2_000;

impl Ledger {
    /// Why policies may be missing, if they may.
    pub(super) fn missing_policies(&self) -> Option<Arc<str>> {
        let origins = self.doubtful.iter().map(|origin| format!("{origin} may hold some and cannot be read"));
        let bounds = self.beyond_bounds.iter().map(|kind| beyond_bounds(*kind));
        origins.chain(bounds).next().map(Arc::from)
    }

    /// Why policies may be missing that say who may come, and that were in force before, if they may.
    pub(super) fn missing_authorizations(&self) -> Option<Arc<str>> {
        let origins = self.doubtful.iter().filter(|origin| self.closes(origin));
        let origins = origins.map(|origin| format!("{origin} may hold some and cannot be read"));
        let bounds = self.beyond_bounds.iter().filter(|kind| kind.closes());
        origins.chain(bounds.map(|kind| beyond_bounds(*kind))).next().map(Arc::from)
    }

    /// Whether a doubtful origin may hold such policies that were in force before: of a file that appears while the agent
    /// runs nothing was.
    fn closes(&self, origin: &Origin) -> bool {
        match origin {
            Origin::Definition(kind) | Origin::Resource(kind) | Origin::Object(Key { kind, .. }) => {
                kind.closes()
            }
            Origin::Cluster(_) => false,
            Origin::File(_) | Origin::Api => self.doubtful_from_start.contains(origin),
        }
    }

    /// What is wrong now: the source first, then origin by origin.
    pub(super) fn current_problems(&self) -> Vec<Problem> {
        let of_source = self.source_problems.iter();
        let mut problems: Vec<Problem> =
            of_source.map(|(origin, text)| Problem::new(origin, None, FieldError::new("", text))).collect();
        let bounds = self.beyond_bounds.iter().map(|kind| (Origin::Resource(*kind), beyond_bounds(*kind)));
        // Where the source says what is wrong, it says what follows.
        let unsaid = self.doubtful.iter().filter(|origin| !self.source_problems.contains_key(*origin));
        let doubtful = unsaid.map(|origin| (origin.clone(), may_hold_policies(self.closes(origin))));
        problems.extend(
            bounds
                .chain(doubtful)
                .map(|(origin, text)| Problem::new(&origin, None, FieldError::new("", text))),
        );
        problems.extend(self.crowded.iter().map(|cluster| {
            let text = format!(
                "other clusters have more than {MAX_OBJECTS} objects together: of this one some are not known"
            );
            Problem::new(&Origin::Cluster(Arc::clone(cluster)), None, FieldError::new("", text))
        }));
        problems.extend(self.mesh.disputed_addresses().take(MAX_NAMED_ADDRESSES).map(disputed));
        let mut duplicates: BTreeMap<&Origin, BTreeMap<usize, Problem>> =
            self.with_problems.iter().map(|origin| (origin, BTreeMap::new())).collect();
        for key in &self.contested {
            let Some(InForce { claim: first, .. }) = self.in_force.get(key) else { continue };
            for claim in self.claims.get(key).into_iter().flatten().filter(|claim| *claim > first) {
                duplicates.entry(&claim.0).or_default().insert(claim.1, duplicate(&claim.0, &first.0, key));
            }
        }
        for (uid, pods) in self.mesh.shared_uids() {
            let pods: Vec<_> = pods.map(|name| Key { kind: Kind::Pod, name: name.clone() }).collect();
            for key in &pods {
                let Some(InForce { claim: (origin, _), .. }) = self.in_force.get(key) else { continue };
                let others = pods.iter().filter(|other| *other != key).map(ToString::to_string);
                let others = others.take(MAX_NAMED_PODS).collect::<Vec<_>>().join(", ");
                problems.push(shared_uid(origin, key, uid, &others));
            }
        }
        for (origin, duplicates) in duplicates {
            let own = self.origins.get(origin).map_or(&[][..], |content| &content.problems);
            let of_origin: Vec<Problem> = own.iter().cloned().chain(duplicates.into_values()).collect();
            problems.extend(capped(of_origin, MAX_ORIGIN_PROBLEMS, "file"));
        }
        capped(problems, MAX_SOURCE_PROBLEMS, "source")
    }
}

/// What follows from an origin of which nothing is known.
fn may_hold_policies(closes: bool) -> String {
    let kind = if closes { Kind::AuthorizationPolicy } else { Kind::PeerAuthentication };
    format!("may hold policies and was never read; until it is, or is gone, {}", kind.while_unknown())
}

fn beyond_bounds(kind: Kind) -> String {
    format!(
        "more than {MAX_OBJECTS} objects: of {} some are not known. Until the agent is started again with fewer, {}",
        kind.row().plural,
        kind.while_unknown()
    )
}

impl Problem {
    /// What is wrong with an object, or with the origin where none is named.
    pub(in crate::discovery) fn new(origin: &Origin, object: Option<String>, error: FieldError) -> Self {
        Self { origin: origin.clone(), object, field: error.field, message: error.message, notice: false }
    }
}

fn disputed((ip, owner, other): (IpAddr, &ObjectName, &ObjectName)) -> Problem {
    let key = Key { kind: Kind::Pod, name: other.clone() };
    let message = format!(
        "{ip} is the address of Pod {owner} too, which keeps it: pods of clusters that are read must have addresses that differ"
    );
    Problem::new(
        &Origin::Object(key.clone()),
        Some(key.to_string()),
        FieldError::new("status.podIPs", message),
    )
}

fn shared_uid(origin: &Origin, key: &Key, uid: &str, others: &str) -> Problem {
    let message = format!(
        "{uid:?} is that of {others} too: they are told apart by their names, and by its UID none of them is found, neither by \
         the CNI nor in the cgroup tree. Give each a UID of its own, or none"
    );
    let error = FieldError::new("metadata.uid", message);
    Problem::new(origin, Some(key.to_string()), error)
}

fn duplicate(origin: &Origin, first: &Origin, key: &Key) -> Problem {
    let message = if origin == first {
        "stands twice in this file; the first one is in force".to_owned()
    } else {
        format!("stands in {first} too, which comes first and is in force")
    };
    let error = FieldError { field: Some("metadata.name".into()), message };
    Problem::new(origin, Some(key.to_string()), error)
}

/// The first `most` problems; the rest are counted, at the origin of the first.
fn capped(mut problems: Vec<Problem>, most: usize, whole: &str) -> Vec<Problem> {
    if let Some(more) = problems.len().checked_sub(most + 1) {
        let message = format!("{} more problems in this {whole}", more + 1);
        problems.truncate(most);
        let rest = Problem::new(&problems[0].origin, None, FieldError::new("", message));
        problems.push(rest);
    }
    problems
}

/// Logs each problem once when it appears and once when it is gone.
pub(super) fn log_changes(before: &[Problem], now: &[Problem]) {
    let known: HashSet<_> = before.iter().collect();
    let present: HashSet<_> = now.iter().collect();
    for Problem { origin, object, field, message, .. } in
        now.iter().filter(|problem| !known.contains(problem))
    {
        warn!(%origin, object, field, "{message}");
    }
    for Problem { origin, object, field, message, .. } in
        before.iter().filter(|problem| !present.contains(problem))
    {
        info!(%origin, object, field, "no longer so: {message}");
    }
}
