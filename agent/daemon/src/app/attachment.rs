//! The agent's answers to its CNI plugin: a pod that is to be in the mesh is enrolled before its first process starts.
//!
//! Promises an answer within [`ENROLMENT_WAIT`] and the wait for a first certificate. Enrols nothing itself: it tells what it
//! has heard, and waits until the node has done it.

use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use ambit_core::model::{ObjectName, Workload};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{locations::Attachments, node::Pods};
use crate::{
    capture::Netns,
    cni::{self, Answer, Command, ENROLMENT_WAIT, Outcome, PodRef, Request},
    discovery::{Feed, World},
    identity::KeyStore,
    telemetry::Telemetry,
};

/// How long a pod of a namespace that does not opt in, as far as is known, is waited for: it may opt in itself.
const STRANGER_WAIT: Duration = Duration::from_secs(2);

/// What answering takes.
#[derive(Clone)]
pub(super) struct Attaching {
    pub(super) node: String,
    pub(super) feed: Feed,
    pub(super) keys: KeyStore,
    pub(super) pods: Pods,
    pub(super) rounds: watch::Receiver<u64>,
    pub(super) attachments: Attachments,
    pub(super) telemetry: Telemetry,
}

impl Attaching {
    /// Answers the plugin on the socket in `run_dir` until `stopped`.
    pub(super) async fn serve(
        self,
        run_dir: PathBuf,
        stopped: impl Future<Output = ()> + Send,
    ) -> anyhow::Result<()> {
        let handle = move |request, netns| self.clone().handle(request, netns);
        Ok(cni::serve(&run_dir, handle, stopped).await?)
    }

    async fn handle(self, request: Request, netns: Option<OwnedFd>) -> Answer {
        let command = request.command;
        let pod =
            request.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
        let answer = match command {
            Command::Add => self.add(request, netns).await,
            Command::Check => self.check(&request),
            Command::Del => {
                self.attachments.remove(&request.container);
                Answer::plain(Outcome::Passed)
            }
            Command::Gc => {
                self.attachments.retain(&request.valid.into_iter().collect());
                Answer::plain(Outcome::Passed)
            }
            Command::Status => Answer::plain(Outcome::Passed),
        };
        self.telemetry.cni_request(command.as_str(), answer.outcome.as_str());
        match answer.outcome {
            Outcome::Enrolled | Outcome::Passed => {
                tracing::debug!(command = command.as_str(), pod, ?answer.outcome, "CNI")
            }
            Outcome::Unknown | Outcome::Failed => {
                tracing::warn!(
                    command = command.as_str(),
                    pod,
                    outcome = answer.outcome.as_str(),
                    error = answer.message,
                    "CNI"
                );
            }
        }
        answer
    }

    async fn add(&self, request: Request, netns: Option<OwnedFd>) -> Answer {
        let deadline = Instant::now() + ENROLMENT_WAIT;
        let (Some(pod), Some(fd)) = (request.pod, netns) else {
            return Answer::saying(
                Outcome::Unknown,
                "the ambit plugin has named no pod, or no network namespace",
            );
        };
        let workload = match self.known(&pod, deadline).await {
            Ok(Some(workload)) => workload,
            Ok(None) => return Answer::plain(Outcome::Passed),
            Err(unknown) => return Answer::saying(Outcome::Unknown, unknown),
        };
        let path = request.netns.map(|netns| PathBuf::from(netns.path)).unwrap_or_default();
        let netns = match Netns::held(fd, path) {
            Ok(netns) if netns.is_own() => {
                return Answer::saying(Outcome::Failed, "CNI_NETNS is the node's own network namespace");
            }
            Ok(netns) => netns,
            Err(error) => {
                return Answer::saying(
                    Outcome::Failed,
                    format!("the agent cannot enter the pod's network namespace: {error}"),
                );
            }
        };
        if workload.ips.is_empty() && request.ips.is_empty() {
            return Answer::saying(Outcome::Failed, "the plugins before ambit-cni gave the pod no address");
        }
        let cookie = netns.cookie();
        if let Err(full) = self.attachments.insert(workload.uid.clone(), request.container, netns) {
            return Answer::saying(Outcome::Failed, full);
        }
        // Counts as long as the pod's object has no address itself.
        self.feed.assign_addresses(&workload.uid, &request.ips);
        if let Err(error) = self.enrolled(&workload.uid, cookie, deadline).await {
            return Answer::saying(Outcome::Failed, error);
        }
        // The pod may start without: its connections wait for the certificate, and are refused while there is none.
        if let Err(error) = self.keys.svid(&workload.identity).await {
            tracing::warn!(pod = %workload.name, %error, "the pod starts before its certificate is there");
        }
        Answer::plain(Outcome::Enrolled)
    }

    /// The pod if it is to be in the mesh, `None` if it is not; else why that is not known.
    async fn known(&self, pod: &PodRef, deadline: Instant) -> Result<Option<Arc<Workload>>, String> {
        let name = ObjectName::new(pod.namespace.as_str(), pod.name.as_str());
        let strangers = Instant::now() + STRANGER_WAIT;
        let mut revisions = self.feed.subscribe();
        loop {
            revisions.borrow_and_update();
            let world = self.feed.world();
            let opted_in = world.mesh.namespaces_opted_in().any(|namespace| **namespace == *pod.namespace);
            let namespace_known = world.synced && world.mesh.knows_namespace(&pod.namespace);
            let until = if opted_in { deadline } else { strangers };
            let late = Instant::now() >= until;
            match self.find(&world, &name, pod.uid.as_deref()) {
                // Without its namespace's labels a pod would seem not to opt in.
                Some((workload, wanted)) if namespace_known || wanted || late => {
                    return Ok(wanted.then(|| workload.clone()));
                }
                _ if late && !world.synced => {
                    return Err("the ambit agent has no complete view of the cluster yet".into());
                }
                _ if late => return Err(format!("the ambit agent does not know the pod {name} yet")),
                _ => {}
            }
            if timeout_at(until, revisions.changed()).await.is_ok_and(|changed| changed.is_err()) {
                return Err("the ambit agent is ending".into());
            }
        }
    }

    fn find<'a>(
        &self,
        world: &'a World,
        name: &ObjectName,
        uid: Option<&str>,
    ) -> Option<(&'a Arc<Workload>, bool)> {
        if !world.synced {
            return None;
        }
        let workload = world.mesh.pod(name)?;
        // The API knows static pods by another UID than the kubelet, which makes theirs without dashes.
        let same = uid.is_none_or(|uid| *uid == *workload.uid || (uid.len() == 32 && !uid.contains('-')));
        let here = *workload.node == *self.node;
        (same && here).then(|| (workload, world.mesh.opts_in(name) == Some(true)))
    }

    /// Waits until the pod is enrolled in the namespace with this cookie.
    async fn enrolled(&self, uid: &str, cookie: u64, deadline: Instant) -> Result<(), String> {
        let mut rounds = self.rounds.clone();
        loop {
            rounds.borrow_and_update();
            let pods = self.pods.load();
            let state = pods.iter().find(|pod| *pod.workload.uid == *uid).map(|pod| pod.state.clone());
            drop(pods);
            if state == Some(Ok(cookie)) {
                return Ok(());
            }
            match timeout_at(deadline, rounds.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err("the ambit agent is ending".into()),
                Err(_) => {
                    let why = state.and_then(Result::err).unwrap_or_else(|| "the agent is busy".into());
                    return Err(format!("the pod could not be enrolled within {ENROLMENT_WAIT:?}: {why}"));
                }
            }
        }
    }

    fn check(&self, request: &Request) -> Answer {
        let Some(pod) = &request.pod else { return Answer::plain(Outcome::Passed) };
        let name = ObjectName::new(pod.namespace.as_str(), pod.name.as_str());
        let world = self.feed.world();
        let Some((workload, true)) = self.find(&world, &name, pod.uid.as_deref()) else {
            return Answer::plain(Outcome::Passed);
        };
        match self.pods.load().iter().find(|pod| pod.workload.uid == workload.uid).map(|pod| &pod.state) {
            Some(Ok(_)) => Answer::plain(Outcome::Enrolled),
            Some(Err(error)) => Answer::saying(Outcome::Failed, error.clone()),
            None => Answer::saying(Outcome::Failed, format!("the pod {name} is not enrolled")),
        }
    }
}
