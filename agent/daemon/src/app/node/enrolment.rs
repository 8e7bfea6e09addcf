//! The pods that are enrolled, and the tasks that serve their listeners.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use ambit_core::discovery::Delta;
use ambit_ebpf_common::Counters;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use super::{
    deputies::Deputies,
    desired::{Desired, DesiredPods},
};
use crate::{
    app::locations::Location,
    capture::{Capture, CaptureError, KubeletGroup, PodNet, PodSpec},
    discovery::{Feed, World},
    instance::{Gate, Readiness},
    proxy::Proxy,
};

/// What may be amiss for all pods at once.
const PROGRAMS: (usize, &str) = (
    0,
    "the eBPF programs cannot be attached, so pods that are not captured yet cannot be; tried again every second",
);
const OUTBOUND: (usize, &str) = (2, "connections of pods to outside cannot be captured");
const DNS: (usize, &str) = (3, "DNS of pods cannot be captured, and goes past the agent");
const DESTINATIONS: (usize, &str) = (1, "neither the meshed destinations nor everything can be captured");

/// What is captured on this node, and who serves it.
pub(super) struct Enrolment {
    capture: Capture,
    proxy: Proxy,
    feed: Feed,
    pods: HashMap<Arc<str>, Enrolled>,
    /// Pods that a full map keeps out of the mesh (UIDs).
    kept_out: HashSet<Arc<str>>,
    readiness: Readiness,
    /// Held while the programs, or what they look into, are not as they should be: for the programs, for destinations, and for pods
    /// whose connections to outside, or whose DNS, are captured.
    amiss: [Option<Gate>; 4],
    serving: JoinSet<()>,
}

/// One enrolled pod.
struct Enrolled {
    spec: PodSpec,
    net: Arc<PodNet>,
    tasks: Vec<AbortHandle>,
    /// Those that serve its DNS.
    dns: Vec<AbortHandle>,
}

impl Enrolled {
    fn abort(&self) {
        self.tasks.iter().chain(&self.dns).for_each(AbortHandle::abort);
    }

    /// A network namespace is one pod's: two would speak with each other's identities.
    fn is_in_the_way_of(&self, spec: &PodSpec) -> bool {
        self.spec.uid != spec.uid && self.spec.netns == spec.netns
    }
}

impl Enrolment {
    pub(super) fn new(capture: Capture, proxy: Proxy, feed: Feed, readiness: Readiness) -> Self {
        let (pods, kept_out, amiss) = (HashMap::new(), HashSet::new(), [const { None }; 4]);
        Self { capture, proxy, feed, pods, kept_out, readiness, amiss, serving: JoinSet::new() }
    }

    /// The cookie of the pod's network namespace, if it is enrolled.
    pub(super) fn cookie(&self, uid: &str) -> Option<u64> {
        self.pods.get(uid).map(|pod| pod.net.cookie())
    }

    /// Whether the pod's DNS is captured.
    pub(super) fn captures_dns(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|pod| pod.net.captures_dns())
    }

    /// Opens what a pod will need, beside an agent that still serves it.
    pub(super) async fn stage(&mut self, pod: &Desired) -> Result<(), String> {
        let location = pod.location.as_ref().map_err(Clone::clone)?;
        self.capture.stage(&pod.spec(location)).await.map_err(|error| error.to_string())
    }

    /// Enrols the pod where it is, if it is not there already; else says why it cannot be. A pod whose namespace is not to be
    /// found any more stays enrolled in the one that it had.
    pub(super) async fn enroll(&mut self, pod: &Desired) -> Result<(), String> {
        match &pod.location {
            Ok(location) => self.enroll_at(pod, location).await.map_err(|error| error.to_string()),
            Err(unknown) if self.pods.contains_key(&pod.workload.uid) => {
                tracing::debug!(pod = %pod.workload.name, unknown, "the pod stays where it was");
                Ok(())
            }
            Err(unknown) => Err(unknown.clone()),
        }
    }

    async fn enroll_at(&mut self, pod: &Desired, location: &Location) -> Result<(), CaptureError> {
        let spec = pod.spec(location);
        if self.pods.get(&spec.uid).is_some_and(|enrolled| enrolled.spec == spec) {
            return Ok(());
        }
        if let Some(other) = self.pods.values().find(|other| other.is_in_the_way_of(&spec)) {
            return Err(CaptureError::Shared {
                netns: spec.netns.path().to_owned(),
                uid: other.spec.uid.clone(),
            });
        }
        let net = match self.capture.enroll(&spec).await {
            Ok(net) => net,
            Err(error) => {
                if matches!(error, CaptureError::Full { .. }) {
                    self.kept_out.insert(spec.uid.clone());
                }
                return Err(error);
            }
        };
        self.kept_out.remove(&spec.uid);
        let policy = self.feed.follow_policy(&pod.workload);
        let mut tasks: Vec<AbortHandle> = (0..net.listeners())
            .map(|listener| {
                let (proxy, net, policy) = (self.proxy.clone(), net.clone(), policy.clone());
                self.serving.spawn(async move { proxy.serve(net, listener, policy).await })
            })
            .collect();
        let (proxy, parked) = (self.proxy.clone(), net.clone());
        tasks.push(self.serving.spawn(async move { proxy.serve_parked(parked, policy).await }));
        tracing::info!(
            pod = %pod.workload.name,
            identity = %pod.workload.identity,
            netns = %spec.netns.path().display(),
            found_by = location.found_by.as_str(),
            "pod enrolled"
        );
        let uid = spec.uid.clone();
        if let Some(old) = self.pods.insert(uid.clone(), Enrolled { spec, net, tasks, dns: Vec::new() }) {
            old.abort();
        }
        self.serve_dns(&uid);
        Ok(())
    }

    /// Serves the pod's DNS, if that is captured and nobody does yet, or no longer.
    fn serve_dns(&mut self, uid: &Arc<str>) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if !pod.net.captures_dns() {
            pod.dns.drain(..).for_each(|task| task.abort());
        }
        for socket in pod.net.take_queries() {
            let (proxy, uid) = (self.proxy.clone(), uid.clone());
            pod.dns.push(self.serving.spawn(async move { proxy.serve_dns(uid, socket).await }));
        }
    }

    /// Releases the pods that are not desired; whether there was one.
    pub(super) fn release_others(&mut self, desired: &DesiredPods) -> bool {
        self.kept_out.retain(|uid| desired.contains(uid));
        let gone: Vec<Arc<str>> = self.pods.keys().filter(|uid| !desired.contains(uid)).cloned().collect();
        for uid in &gone {
            self.release(uid);
        }
        !gone.is_empty()
    }

    fn release(&mut self, uid: &str) {
        if let Some(enrolled) = self.pods.remove(uid) {
            self.capture.release(uid);
            enrolled.abort();
            tracing::info!(%uid, netns = %enrolled.spec.netns.path().display(), "pod released");
        }
    }

    /// Makes the captured destinations those of this world, whatever was captured before.
    pub(super) fn set_destinations(&mut self, world: &World) {
        let done = self.capture.set_destinations(world.mesh.captured_destinations().collect());
        self.take_note(DESTINATIONS, &done);
    }

    /// Begins and ends the capture of what differs, and puts in order what failed before.
    pub(super) fn change_destinations(&mut self, delta: &Delta) {
        let done = self.capture.change_destinations(delta);
        self.take_note(DESTINATIONS, &done);
    }

    /// Has all captured that the pods dial whose connections to outside are the agent's affair, and DNS of those that opt in.
    pub(super) fn capture_everything(&mut self, desired: &DesiredPods, world: &World) {
        let mesh = &world.mesh;
        let watched =
            desired.iter().filter(|(_, pod)| mesh.captures_everything_of(&pod.workload.name.namespace));
        let done = self.capture.capture_everything_of(watched.map(|(uid, _)| uid.clone()).collect());
        self.take_note(OUTBOUND, &done);
        let asking = desired.iter().filter(|(_, pod)| mesh.captures_dns_of(&pod.workload.name));
        let done = self.capture.capture_dns_of(asking.map(|(uid, _)| uid.clone()).collect());
        self.take_note(DNS, &done);
        let enrolled: Vec<Arc<str>> = self.pods.keys().cloned().collect();
        enrolled.iter().for_each(|uid| self.serve_dns(uid));
    }

    /// Why all that enrolled pods dial is captured, if it is.
    pub(super) fn shortfall(&self) -> Option<&str> {
        self.capture.shortfall()
    }

    /// How many pods a full map keeps out of the mesh.
    pub(super) fn kept_out(&self) -> usize {
        self.kept_out.len()
    }

    /// Lets the kubelet's probes through to the pods' probe ports, but for those that another pod may have asked for.
    pub(super) fn set_probes(&mut self, desired: &DesiredPods, deputies: &mut Deputies) {
        let ports = desired.iter().map(|(uid, pod)| (&**uid, &*pod.workload.probe_ports));
        let mut withdrawn = BTreeMap::new();
        let set = self.capture.set_probes(ports, |ip, port| match deputies.deputy_of(ip, port) {
            Some(deputy) => {
                withdrawn.insert((ip, port), deputy.clone());
                false
            }
            None => true,
        });
        if let Err(error) = set {
            tracing::error!(%error, "the list of ports that the kubelet probes could not be updated");
        }
        deputies.tell(withdrawn);
    }

    /// Tells when [`Self::follow_kubelet`] is to be called.
    pub(super) fn kubelet(&self) -> watch::Receiver<Option<KubeletGroup>> {
        self.capture.kubelet()
    }

    /// Lets the probes through of a kubelet that has started somewhere else, or anew.
    pub(super) fn follow_kubelet(&self) {
        if let Err(error) = self.capture.set_kubelet() {
            tracing::error!(%error, "the kubelet is not known to the programs; its probes are treated as any plaintext");
        }
    }

    /// Takes off what an earlier agent left for pods that are not `expected` (UIDs).
    pub(super) async fn sweep(&self, expected: &HashSet<Arc<str>>) {
        let released = self.capture.sweep(expected).await;
        if released > 0 {
            tracing::info!(released, "pods that left the mesh while no agent ran were released");
        }
    }

    /// Ends the first round; whether the programs are this process's now.
    pub(super) fn settle(&mut self) -> bool {
        let settled = self.capture.settle();
        self.take_note(PROGRAMS, &settled);
        settled.is_ok()
    }

    /// Says once that something of all pods' is not as it should be; the agent is not ready while it is so.
    fn take_note(&mut self, (what, text): (usize, &str), done: &Result<(), CaptureError>) {
        match (done, &self.amiss[what]) {
            (Ok(()), _) => self.amiss[what] = None,
            (Err(error), None) => {
                tracing::error!(%error, "{text}");
                self.amiss[what] = Some(self.readiness.gate_because("capture", format!("{text}: {error}")));
            }
            (Err(_), Some(_)) => {}
        }
    }

    /// Takes the last of released pods off once they carry nothing.
    pub(super) async fn tidy(&mut self) {
        self.capture.tidy().await;
        while self.serving.try_join_next().is_some() {}
    }

    /// Leads the pods back here.
    pub(super) fn take_back(&mut self) -> Result<(), CaptureError> {
        self.capture.take_back()
    }

    /// Takes off released pods whatever they still carry.
    pub(super) async fn end(&mut self) {
        self.capture.end().await;
    }

    /// What the programs did in a pod so far.
    pub(super) fn counters(&self, uid: &str) -> Counters {
        self.capture.counters(uid)
    }

    /// How many system calls each map has taken.
    pub(super) fn map_operations(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.capture.map_operations()
    }
}
