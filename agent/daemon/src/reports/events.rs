//! Events on this node's pods: enrolled, once; cannot be enrolled, again only when the reason is another one or time has
//! passed. Repeated ones are counted in one Event (`events.k8s.io/v1` series).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::time::Instant;

use super::{Outcome, PodReport, pace::Pace, send};

/// A pod in the making has no network for a moment: no reason for an event.
const GRACE: Duration = Duration::from_secs(5);
/// How long one problem of one pod makes no further event.
const QUIET: Duration = Duration::from_secs(300);
/// Events that may come at once, and how long one more takes to be allowed.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(6);
/// The API server takes no longer notes, bytes.
const MAX_NOTE: usize = 1_024;

/// Writes the events.
pub(super) struct Events {
    recorder: Recorder,
    pace: Pace<(Arc<str>, String)>,
    failing: HashMap<Arc<str>, Failing>,
    budget: u32,
    refilled: Option<Instant>,
}

/// A pod that cannot be enrolled.
struct Failing {
    since: Instant,
    /// The problem that was published last, and when.
    published: Option<(String, Instant)>,
}

impl Events {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter { controller: "ambit.dev/agent".to_owned(), instance: Some(node.to_owned()) };
        Self {
            recorder: Recorder::new(client, reporter),
            pace: Pace::new("events"),
            failing: HashMap::new(),
            budget: BURST,
            refilled: None,
        }
    }

    /// Publishes events for the pods that were enrolled just now, and for those that cannot be.
    pub(super) async fn write(&mut self, pods: &[PodReport], enrolled: &[Arc<str>], now: Instant) {
        self.refill(now);
        let present: HashSet<&str> =
            pods.iter().filter(|pod| pod.problem.is_some()).map(|pod| &*pod.uid).collect();
        self.failing.retain(|uid, _| present.contains(&**uid));
        self.pace.retain(|(uid, _)| present.contains(&**uid));
        for pod in pods {
            let written = match &pod.problem {
                None if enrolled.contains(&pod.uid) => {
                    let note = format!("traffic of this pod is carried as {}", pod.identity);
                    self.publish(pod, EventType::Normal, "Enrolled", note).await
                }
                None => continue,
                Some(problem) if self.is_due(pod, problem, now) => {
                    let note =
                        format!("this pod's connections are refused until it can be enrolled: {problem}");
                    let outcome = self.publish(pod, EventType::Warning, "EnrolmentFailed", note).await;
                    self.pace.done(&(pod.uid.clone(), problem.clone()), &outcome, now);
                    if outcome == Outcome::Written
                        && let Some(failing) = self.failing.get_mut(&pod.uid)
                    {
                        failing.published = Some((problem.clone(), now));
                    }
                    outcome
                }
                Some(_) => continue,
            };
            self.budget = self.budget.saturating_sub(1);
            if self.budget == 0 || matches!(written, Outcome::Failed(_)) {
                return;
            }
        }
    }

    fn is_due(&mut self, pod: &PodReport, problem: &str, now: Instant) -> bool {
        let failing = self.failing.entry(pod.uid.clone()).or_insert(Failing { since: now, published: None });
        let quiet = failing
            .published
            .as_ref()
            .is_some_and(|(published, at)| published == problem && now - *at < QUIET);
        let subject = (pod.uid.clone(), problem.to_owned());
        now - failing.since >= GRACE && !quiet && self.pace.due(&subject, Duration::ZERO, now)
    }

    async fn publish(&self, pod: &PodReport, type_: EventType, reason: &str, mut note: String) -> Outcome {
        if self.budget == 0 {
            return Outcome::Moot;
        }
        note.truncate(note.floor_char_boundary(MAX_NOTE));
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Enrol".to_owned(),
            secondary: None,
        };
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name.name.to_string()),
            namespace: Some(pod.name.namespace.to_string()),
            uid: Some(pod.uid.to_string()),
            ..Default::default()
        };
        send("event", self.recorder.publish(&event, &regarding)).await
    }

    fn refill(&mut self, now: Instant) {
        let last = *self.refilled.get_or_insert(now);
        let more = u32::try_from((now - last).as_secs() / REFILL.as_secs()).unwrap_or(BURST);
        if more > 0 {
            self.budget = self.budget.saturating_add(more).min(BURST);
            self.refilled = Some(now);
        }
    }
}
