//! Where the pods of this node have their network namespaces: what a manifest in a folder says, else what the CNI handed over, else
//! where an earlier agent enrolled them, else what the cgroup tree shows.
//!
//! Promises that a namespace once known is held open, that the node's own is never taken for a pod's, and that a pod whose
//! sandbox was made anew gets the new one. Enrolling pods there is left to the node.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ambit_core::model::{NETNS_ANNOTATION, Workload};
use tokio::sync::Notify;

use crate::capture::{CgroupUid, Cgroups, Found, Netns, Pinned, netns_path};

/// The least time between two walks through the cgroup tree for the same pods.
const WALK: Duration = Duration::from_millis(500);
/// Sandboxes that the CNI may tell of; several times what a node has.
const MAX_ATTACHMENTS: usize = 4_096;

/// How a pod's network namespace was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FoundBy {
    /// The manifest's annotation names it.
    Annotation,
    /// The CNI plugin handed it over.
    Cni,
    /// An earlier agent enrolled the pod there.
    Pin,
    /// A process of the pod is in it.
    Cgroup,
}

impl FoundBy {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Annotation => "annotation",
            Self::Cni => "cni",
            Self::Pin => "pin",
            Self::Cgroup => "cgroup",
        }
    }
}

/// A pod's network namespace and how it was found.
#[derive(Clone, Debug)]
pub(super) struct Location {
    pub(super) netns: Netns,
    pub(super) found_by: FoundBy,
}

/// What the CNI has told, by pod UID. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Attachments(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    pods: Mutex<HashMap<Arc<str>, Attachment>>,
    changed: Notify,
}

#[derive(Debug)]
struct Attachment {
    sandbox: String,
    netns: Netns,
}

impl Attachments {
    /// A pod has got a namespace. Fails only with more pods than any node has.
    pub(super) fn insert(&self, uid: Arc<str>, sandbox: String, netns: Netns) -> Result<(), String> {
        let mut pods = self.pods();
        if pods.len() >= MAX_ATTACHMENTS && !pods.contains_key(&uid) {
            return Err(format!("the CNI has handed over more than {MAX_ATTACHMENTS} pods"));
        }
        pods.insert(uid, Attachment { sandbox, netns });
        drop(pods);
        self.0.changed.notify_one();
        Ok(())
    }

    /// A sandbox is gone. That of a pod's new sandbox stays.
    pub(super) fn remove(&self, sandbox: &str) {
        self.pods().retain(|_, attachment| attachment.sandbox != sandbox);
    }

    /// Only these sandboxes are there.
    pub(super) fn retain(&self, sandboxes: &HashSet<String>) {
        self.pods().retain(|_, attachment| sandboxes.contains(&attachment.sandbox));
    }

    /// Waits for the next pod that gets a namespace. For one waiter.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn netns(&self, uid: &str) -> Option<Netns> {
        self.pods().get(uid).map(|attachment| attachment.netns.clone())
    }

    fn forget_others(&self, uids: &HashSet<Arc<str>>) {
        self.pods().retain(|uid, _| uids.contains(uid));
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<Arc<str>, Attachment>> {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of this node's pods.
#[derive(Debug)]
pub(super) struct Locations {
    attachments: Attachments,
    cgroups: Cgroups,
    pins: Pinned,
    /// Whether annotations are the operator's word. In a cluster they are that of whoever may make pods, who could name
    /// another pod's namespace.
    trusts_annotations: bool,
    annotated: HashMap<Arc<str>, Netns>,
    pinned: HashMap<Arc<str>, Netns>,
    found: HashMap<Arc<str>, Found>,
    /// The last walk, and what it did not find.
    walked: Option<(Instant, HashSet<CgroupUid>)>,
}

impl Locations {
    pub(super) fn new(cgroups: Cgroups, pins: Pinned, trusts_annotations: bool) -> Self {
        Self {
            attachments: Attachments::default(),
            cgroups,
            pins,
            trusts_annotations,
            annotated: HashMap::new(),
            pinned: HashMap::new(),
            found: HashMap::new(),
            walked: None,
        }
    }

    /// Where the CNI's words go.
    pub(super) fn attachments(&self) -> Attachments {
        self.attachments.clone()
    }

    /// Forgets what is known of other pods than these, all those of this node.
    pub(super) fn retain(&mut self, here: &[Arc<Workload>]) {
        let uids: HashSet<Arc<str>> = here.iter().map(|pod| pod.uid.clone()).collect();
        self.attachments.forget_others(&uids);
        self.annotated.retain(|uid, _| uids.contains(uid));
        self.pinned.retain(|uid, _| uids.contains(uid));
        self.found.retain(|uid, _| uids.contains(uid));
    }

    /// Brings what is known of these pods up to date: one walk through the cgroup tree for all those of the mesh that are not
    /// known otherwise.
    pub(super) async fn look(&mut self, pods: &[Arc<Workload>]) {
        let unknown = pods.iter().filter(|pod| {
            pod.enrolled
                && self.annotation(pod).is_none()
                && self.attachments.netns(&pod.uid).is_none()
                && self.pinned(&pod.uid).is_none()
                && !self.found.get(&pod.uid).is_some_and(Found::is_current)
        });
        let unknown: HashMap<CgroupUid, Arc<str>> =
            unknown.filter_map(|pod| Some((CgroupUid::parse(&pod.uid)?, pod.uid.clone()))).collect();
        let wanted: HashSet<CgroupUid> = unknown.keys().copied().collect();
        let lately =
            |(at, missing): &(Instant, HashSet<CgroupUid>)| at.elapsed() < WALK && wanted.is_subset(missing);
        if wanted.is_empty() || self.walked.as_ref().is_some_and(lately) {
            return;
        }
        let (cgroups, pins) = (self.cgroups.clone(), self.pins.clone());
        let uids: HashSet<Arc<str>> = unknown.values().cloned().collect();
        let walk = tokio::task::spawn_blocking(move || {
            let pinned = pins.find(&uids);
            let is_pinned =
                |uid: &CgroupUid| pinned.keys().any(|pinned| CgroupUid::parse(pinned) == Some(*uid));
            let wanted: HashSet<CgroupUid> = wanted.into_iter().filter(|uid| !is_pinned(uid)).collect();
            let found = if wanted.is_empty() { HashMap::new() } else { cgroups.find(&wanted) };
            let missing: HashSet<_> = wanted.into_iter().filter(|uid| !found.contains_key(uid)).collect();
            (pinned, found, missing)
        });
        // The pool refuses only while the runtime ends.
        let Ok((pinned, found, missing)) = walk.await else { return };
        self.walked = Some((Instant::now(), missing));
        self.pinned.extend(pinned);
        for (uid, found) in found {
            if let Some(pod) = unknown.get(&uid) {
                self.found.insert(pod.clone(), found);
            }
        }
    }

    /// The namespace of a pod, or why it is not known.
    pub(super) fn of(&mut self, pod: &Workload) -> Result<Location, String> {
        if let Some(name) = self.annotation(pod) {
            return self.annotated(pod, name).map(|netns| Location { netns, found_by: FoundBy::Annotation });
        }
        if let Some(netns) = self.attachments.netns(&pod.uid) {
            return Ok(Location { netns, found_by: FoundBy::Cni });
        }
        if let Some(netns) = self.pinned(&pod.uid) {
            return Ok(Location { netns: netns.clone(), found_by: FoundBy::Pin });
        }
        match self.found.get(&pod.uid) {
            Some(found) => Ok(Location { netns: found.netns.clone(), found_by: FoundBy::Cgroup }),
            None if self.trusts_annotations => Err(format!(
                "the pod's network namespace is not known: no process is in a cgroup that the kubelet made for its UID, and no \
                 annotation {NETNS_ANNOTATION} names it"
            )),
            None => {
                Err("the pod's network namespace is not known: no process is in a cgroup that the kubelet made for its UID"
                    .to_owned())
            }
        }
    }

    /// Where an earlier agent enrolled the pod, as long as the runtime has it there.
    fn pinned(&self, uid: &str) -> Option<&Netns> {
        self.pinned.get(uid).filter(|netns| netns.is_at(netns.path()))
    }

    fn annotation<'a>(&self, pod: &'a Workload) -> Option<&'a str> {
        pod.netns.as_deref().filter(|_| self.trusts_annotations)
    }

    fn annotated(&mut self, pod: &Workload, name: &str) -> Result<Netns, String> {
        let path = netns_path(name);
        if let Some(held) = self.annotated.get(&pod.uid).filter(|held| held.is_at(&path)) {
            return Ok(held.clone());
        }
        let netns = Netns::open(&path)
            .map_err(|error| format!("network namespace {}: open: {error}", path.display()))?;
        if netns.is_own() {
            return Err(format!("{} is the node's own network namespace, not the pod's", path.display()));
        }
        self.annotated.insert(pod.uid.clone(), netns.clone());
        Ok(netns)
    }
}
