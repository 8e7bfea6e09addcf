//! Events on this node's pods: what of the mesh an operator sees in `kubectl describe pod`. A pod is enrolled; is kept from talking,
//! told again only when the reason is another one or time has passed; has left the mesh.
//!
//! A pod's enrolment is told under a name that its UID gives, so that it stands there once however many agents come and go.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ambit_core::model::ObjectName;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::time::Instant;

use super::{Hindrance, Outcome, PodReport, note::Note, pace::Pace, without_numbers};

/// A pod in the making has no network for a moment: no reason for an event.
const GRACE: Duration = Duration::from_secs(5);
/// How long one problem of one pod makes no further event.
const QUIET: Duration = Duration::from_secs(300);
/// Events that may come at once, and how long one more takes to be allowed.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(6);
/// Writes the events.
pub(super) struct Events {
    client: Client,
    node: String,
    pace: Pace<(Arc<str>, String)>,
    /// By UID.
    subjects: HashMap<Arc<str>, Subject>,
    /// Whether it has been looked before.
    looked: bool,
    budget: u32,
    refilled: Option<Instant>,
}

/// A pod of the mesh, or one that was until now.
struct Subject {
    name: ObjectName,
    /// It was there when this agent began to look: an earlier one may have told of it.
    inherited: bool,
    failing_since: Option<Instant>,
    told: Option<Told>,
}

/// What was published last.
enum Told {
    Enrolled,
    Hindered { by: String, at: Instant },
}

/// An event to be published.
struct Due {
    uid: Arc<str>,
    name: ObjectName,
    what: What,
}

#[derive(Clone, PartialEq, Eq)]
enum What {
    Enrolled(String),
    Hindered(Hindrance),
    Left,
}

impl Events {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self {
            client,
            node: node.to_owned(),
            pace: Pace::new("events"),
            subjects: HashMap::new(),
            looked: false,
            budget: BURST,
            refilled: None,
        }
    }

    /// Publishes what has changed of `pods`, those of the mesh. `opted_out` says of another pod whether it is there and does not
    /// opt in.
    pub(super) async fn write(
        &mut self,
        pods: &[PodReport],
        opted_out: impl Fn(&ObjectName, &str) -> bool,
        now: Instant,
    ) {
        self.refill(now);
        let due = self.due(pods, opted_out, now);
        for event in due {
            if self.budget == 0 {
                return;
            }
            let subject = (event.uid.clone(), event.what.key());
            if !self.pace.due(&subject, Duration::ZERO, now) {
                continue;
            }
            let outcome = self.publish(&event).await;
            self.budget -= 1;
            self.pace.done(&subject, &outcome, now);
            if matches!(outcome, Outcome::Failed(_)) {
                // The others would most likely fail as well, each after its time.
                return;
            }
            self.told(&event, now);
        }
    }

    /// What is to be told, all of it.
    fn due(
        &mut self,
        pods: &[PodReport],
        opted_out: impl Fn(&ObjectName, &str) -> bool,
        now: Instant,
    ) -> Vec<Due> {
        let inherited = !std::mem::replace(&mut self.looked, true);
        let mut due = Vec::new();
        for pod in pods {
            let subject = self.subjects.entry(pod.uid.clone()).or_insert_with(|| Subject {
                name: pod.name.clone(),
                inherited,
                failing_since: None,
                told: None,
            });
            if let Some(what) = subject.due(pod, now) {
                due.push(Due { uid: pod.uid.clone(), name: pod.name.clone(), what });
            }
        }
        let present: HashSet<&str> = pods.iter().map(|pod| &*pod.uid).collect();
        self.subjects.retain(|uid, subject| {
            let left = !present.contains(&**uid);
            let tell = left && subject.told.is_some() && opted_out(&subject.name, uid);
            if tell {
                due.push(Due { uid: uid.clone(), name: subject.name.clone(), what: What::Left });
            }
            !left || tell
        });
        let known = &self.subjects;
        self.pace.retain(|(uid, _)| known.contains_key(uid));
        due
    }

    fn told(&mut self, event: &Due, now: Instant) {
        let told = match &event.what {
            What::Enrolled(_) => Told::Enrolled,
            What::Hindered(_) => Told::Hindered { by: event.what.key(), at: now },
            What::Left => {
                self.subjects.remove(&event.uid);
                return;
            }
        };
        if let Some(subject) = self.subjects.get_mut(&event.uid) {
            subject.told = Some(told);
            // What comes from now on is this agent's own to tell.
            subject.inherited = false;
        }
    }

    async fn publish(&self, event: &Due) -> Outcome {
        let now = Timestamp::now();
        if matches!(event.what, What::Enrolled(_)) {
            let outcome = self.create(event, &event.uid, now).await;
            let inherited = self.subjects.get(&event.uid).is_some_and(|subject| subject.inherited);
            // One that stands there already is of an earlier agent, or from before the pod left the mesh and came back.
            if outcome != Outcome::Moot || inherited {
                return outcome;
            }
        }
        self.create(event, &format!("{:x}", now.as_nanosecond()), now).await
    }

    async fn create(&self, event: &Due, suffix: &str, now: Timestamp) -> Outcome {
        let note = Note {
            kind: ("v1", "Pod"),
            name: &event.name,
            uid: &event.uid,
            action: "Enrol",
            warning: event.what.is_warning(),
            reason: event.what.reason(),
            text: event.what.note(),
        };
        note.create(&self.client, &self.node, suffix, now).await
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

impl Subject {
    /// What is to be told of the pod as it stands.
    fn due(&mut self, pod: &PodReport, now: Instant) -> Option<What> {
        let Some(hindrance) = &pod.hindrance else {
            self.failing_since = None;
            let told = matches!(self.told, Some(Told::Enrolled));
            return (!told).then(|| What::Enrolled(pod.identity.to_string()));
        };
        let since = *self.failing_since.get_or_insert(now);
        let what = What::Hindered(hindrance.clone());
        let quiet = match &self.told {
            Some(Told::Hindered { by, at }) => *by == what.key() && now - *at < QUIET,
            _ => false,
        };
        (now - since >= GRACE && !quiet).then_some(what)
    }
}

impl What {
    fn reason(&self) -> &'static str {
        match self {
            Self::Enrolled(_) => "Enrolled",
            Self::Hindered(hindrance) => hindrance.reason(),
            Self::Left => "LeftMesh",
        }
    }

    fn is_warning(&self) -> bool {
        matches!(self, Self::Hindered(_))
    }

    fn note(&self) -> String {
        match self {
            Self::Enrolled(identity) => format!("traffic of this pod is carried as {identity}"),
            Self::Hindered(Hindrance::Enrolment(problem)) => {
                format!("this pod's connections are refused until it can be enrolled: {problem}")
            }
            Self::Hindered(Hindrance::Certificate(problem)) => {
                format!("this pod's connections are refused until it has a certificate: {problem}")
            }
            Self::Left => "this pod has left the mesh: what it sends is not captured any more".to_owned(),
        }
    }

    /// What it is paced by, and what makes it another one.
    fn key(&self) -> String {
        match self {
            Self::Hindered(Hindrance::Enrolment(why) | Hindrance::Certificate(why)) => {
                format!("{}: {}", self.reason(), without_numbers(why))
            }
            Self::Enrolled(_) | Self::Left => self.reason().to_owned(),
        }
    }
}
