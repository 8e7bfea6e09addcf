//! Metrics for those who write policies: denials by reason and policy, what policies that decide nothing would have done, and
//! plaintext by source.

use std::{sync::Arc, time::Instant};

use ambit_core::{
    model::ObjectName,
    reason::{Refusal, Rehearsed},
};
use prometheus_client::{encoding::EncodeLabelSet, registry::Registry};

use super::{
    Direction, Meta, Party,
    expiring::{Expiring, OTHER, Word},
};

const UNKNOWN: &str = "unknown";
const NONE: &str = "none";

#[derive(Clone, Debug)]
pub(super) struct PolicyMetrics {
    denials: Arc<Expiring<DenialLabels>>,
    rehearsals: Arc<Expiring<RehearsalLabels>>,
    plaintext: Arc<Expiring<PlaintextLabels>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DenialLabels {
    reporter: &'static str,
    reason: &'static str,
    policy: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RehearsalLabels {
    policy: String,
    action: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaintextLabels {
    source_workload: String,
    source_workload_namespace: String,
    destination_workload: String,
    destination_workload_namespace: String,
}

impl PolicyMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let other = || OTHER.to_owned();
        let metrics = Self {
            denials: Arc::new(Expiring::new(
                "ambit_denials",
                "Connections that an agent decided against, by reason and policy",
                DenialLabels { reporter: OTHER, reason: OTHER, policy: other() },
            )),
            rehearsals: Arc::new(Expiring::new(
                "ambit_policy_rehearsals",
                "Connections that dry-run and AUDIT policies were tried on, by what they would have changed",
                RehearsalLabels { policy: other(), action: OTHER, result: OTHER },
            )),
            plaintext: Arc::new(Expiring::new(
                "ambit_plaintext_connections",
                "Connections that pods of this node took in plaintext, by source",
                PlaintextLabels {
                    source_workload: other(),
                    source_workload_namespace: other(),
                    destination_workload: other(),
                    destination_workload_namespace: other(),
                },
            )),
        };
        registry.register_collector(Box::new(metrics.denials.clone()));
        registry.register_collector(Box::new(metrics.rehearsals.clone()));
        registry.register_collector(Box::new(metrics.plaintext.clone()));
        metrics
    }

    pub(super) fn denied(&self, direction: Direction, refusal: &Refusal, by_peer: bool, now: Instant) {
        let labels = DenialLabels {
            reporter: direction.reporter(),
            reason: refusal.reason.label(),
            policy: refusal.policy.as_deref().unwrap_or(NONE).to_owned(),
        };
        self.denials.inc(if by_peer { Word::Peers } else { Word::Ours }, labels, now);
    }

    pub(super) fn rehearsed(
        &self,
        policy: &ObjectName,
        action: &'static str,
        rehearsed: Rehearsed,
        now: Instant,
    ) {
        let result = match rehearsed {
            Rehearsed::Unchanged => "unchanged",
            Rehearsed::WouldRefuse => "would_refuse",
            Rehearsed::WouldAdmit(_) => "would_admit",
            Rehearsed::Audited(_) => "matched",
        };
        self.rehearsals.inc(Word::Ours, RehearsalLabels { policy: policy.to_string(), action, result }, now);
    }

    pub(super) fn plaintext(&self, meta: &Meta, now: Instant) {
        let names = |party: &Party| match &party.workload {
            Some(pod) => (pod.workload_name().to_owned(), pod.name.namespace.to_string()),
            None => (UNKNOWN.to_owned(), UNKNOWN.to_owned()),
        };
        let (source_workload, source_workload_namespace) = names(&meta.source);
        let (destination_workload, destination_workload_namespace) = names(&meta.destination);
        let labels = PlaintextLabels {
            source_workload,
            source_workload_namespace,
            destination_workload,
            destination_workload_namespace,
        };
        self.plaintext.inc(Word::Ours, labels, now);
    }
}
