//! How the pods of this node stand, for whoever asks.

use std::{collections::HashMap, sync::Arc};

use ambit_core::model::Workload;
use ambit_ebpf_common::Counters;
use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{
    desired::{Desired, DesiredPods},
    enrolment::Enrolment,
};
use crate::{app::locations::FoundBy, telemetry::Telemetry};

/// How a pod of this node stands, for `ambit status`.
#[derive(Clone, Debug)]
pub(in crate::app) struct PodStatus {
    pub(in crate::app) workload: Arc<Workload>,
    /// Its network namespace's cookie once it is enrolled, else why it is not.
    pub(in crate::app) state: Result<u64, String>,
    /// How its network namespace was found, once it is.
    pub(in crate::app) found_by: Option<FoundBy>,
    pub(in crate::app) counters: Counters,
    pub(in crate::app) captures_dns: bool,
}

/// The pods of this node as of the last look; read without a lock.
pub(in crate::app) type Pods = Arc<ArcSwap<Vec<PodStatus>>>;

/// Where it is published.
pub(super) struct Publication {
    pods: Pods,
    /// Grows with every publication, after `pods`.
    rounds: watch::Sender<u64>,
    telemetry: Telemetry,
    /// As they were last read.
    counters: HashMap<Arc<str>, Counters>,
}

impl Publication {
    pub(super) fn new(pods: Pods, rounds: watch::Sender<u64>, telemetry: Telemetry) -> Self {
        Self { pods, rounds, telemetry, counters: HashMap::new() }
    }

    /// Reads the programs' counters.
    pub(super) fn count(&mut self, enrolment: &Enrolment, desired: &DesiredPods) {
        let read = desired.iter().filter(|(uid, _)| enrolment.cookie(uid).is_some());
        self.counters = read.map(|(uid, _)| (uid.clone(), enrolment.counters(uid))).collect();
        let probes = desired
            .iter()
            .filter_map(|(uid, pod)| Some((&pod.workload.name, self.counters.get(uid)?.probes)));
        self.telemetry.probes(probes);
        self.telemetry.map_operations(enrolment.map_operations());
    }

    /// Publishes how the pods stand, with the counters as they were last read.
    pub(super) fn publish(&self, enrolment: &Enrolment, desired: &DesiredPods) {
        let mut pods: Vec<PodStatus> =
            desired.iter().filter_map(|(uid, pod)| self.status(enrolment, uid, pod)).collect();
        pods.sort_by(|a, b| a.workload.name.cmp(&b.workload.name));
        let enrolled = pods.iter().filter(|pod| pod.state.is_ok()).count();
        self.telemetry.enrolled_pods(enrolled);
        self.telemetry.failed_pods(pods.len() - enrolled);
        self.pods.store(Arc::new(pods));
        self.rounds.send_modify(|round| *round += 1);
    }

    fn status(&self, enrolment: &Enrolment, uid: &str, pod: &Desired) -> Option<PodStatus> {
        let workload = pod.workload.clone();
        Some(match &pod.failure {
            Some(failure) => PodStatus {
                workload,
                state: Err(failure.clone()),
                found_by: None,
                counters: Counters::default(),
                captures_dns: false,
            },
            None => PodStatus {
                workload,
                state: Ok(enrolment.cookie(uid)?),
                found_by: pod.location.as_ref().ok().map(|location| location.found_by),
                counters: self.counters.get(uid).copied().unwrap_or_default(),
                captures_dns: enrolment.captures_dns(uid),
            },
        })
    }
}
