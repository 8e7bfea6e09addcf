//! The watch of one resource: list, watch, and what to do when either fails.

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use ambit_core::model::ObjectName;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, InitialListStrategy, watcher},
};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_stream::{Stream, StreamExt};
use tracing::{debug, info};

use super::{
    Hub, definition,
    health::Failure,
    last_known::{LastKnown, Standing},
    object::ApiObject,
    policy_status::CurrentStatus,
};
use crate::{
    cluster::sentence,
    discovery::{
        Origin, Problem,
        kinds::{Key, Report, Row},
    },
};

/// The first wait after a failure; it doubles with each that follows.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest wait between attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The same for another cluster's API, which all agents of several clusters come back to.
const LONGEST_WAIT_ELSEWHERE: Duration = Duration::from_secs(15);
/// The longest wait for a resource that the cluster does not have.
const ABSENT_WAIT: Duration = Duration::from_secs(15);
/// Failures in a row before they are reported: a server that restarts cuts every watch once.
const TOLERATED: u32 = 1;
/// Answers in a row that a resource is not there, before that is believed.
const TO_BE_ABSENT: u32 = 3;
/// Answers with an error in a row after which the resource is listed anew: the version to go on from may be what is
/// wrong, as after etcd was restored from a backup.
const TO_START_OVER: u32 = 6;
/// A watch that has not failed for so long after a failure is taken to stand; the server says nothing of its own accord.
const STANDS: Duration = Duration::from_secs(5);
/// How long objects that go are gathered before it is asked whether they go with their definition.
const GATHER: Duration = Duration::from_millis(200);
/// The pause before it is asked again, where that could not be told.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long the server keeps a watch, seconds; a connection that died unnoticed is given up 5 s later.
const WATCH_SECONDS: u32 = 120;

/// Watches one resource for ever.
pub(super) struct ResourceWatch {
    row: &'static Row,
    client: Client,
    hub: Arc<Hub>,
    /// The names met since the last list began, until it is complete.
    listing: Option<HashSet<ObjectName>>,
    /// It has been read to its end once.
    read: bool,
    /// Failures since the last sign of life.
    failures: u32,
    /// The failures have been reported.
    reported: bool,
    /// The cluster does not have the resource.
    absent: bool,
    /// What it was last known to hold, of a resource that may go with its definition.
    last: Option<LastKnown>,
    /// What was told last of its definition: what is wrong, and whether it is unknown what it held.
    told: (Option<String>, bool),
    /// When it is to be asked whether the definition stands.
    ask_at: Option<Instant>,
    /// When a watch that has failed may be taken to stand.
    stands_at: Option<Instant>,
    strategy: InitialListStrategy,
}

/// Why a stream of events is given up for a new one.
enum Over {
    /// The resource is not there, now twice.
    Absent,
    /// Another way to list, or a new list, is to be tried.
    Again,
}

impl ResourceWatch {
    pub(super) fn new(row: &'static Row, client: Client, hub: Arc<Hub>) -> Self {
        let last = row.optional.then(|| LastKnown::load(row, &hub.hold, Instant::now()));
        Self {
            row,
            client,
            hub,
            last,
            told: (None, false),
            ask_at: None,
            stands_at: None,
            listing: None,
            read: false,
            failures: 0,
            reported: false,
            absent: false,
            strategy: InitialListStrategy::StreamingList,
        }
    }

    pub(super) async fn run(mut self) {
        let api: Api<ApiObject> = Api::all_with(self.client.clone(), &self.row.kind.api_resource());
        loop {
            let config = watcher::Config {
                initial_list_strategy: self.strategy.clone(),
                timeout: Some(WATCH_SECONDS),
                ..Default::default()
            };
            match self.follow(pin!(watcher(api.clone(), config))).await {
                Over::Again => self.pause(self.longest_wait()).await,
                Over::Absent => self.pause(ABSENT_WAIT).await,
            }
        }
    }

    async fn follow(
        &mut self,
        mut events: impl Stream<Item = watcher::Result<Event<ApiObject>>> + Unpin,
    ) -> Over {
        loop {
            self.see_to_what_is_due().await;
            let due = self.last.as_ref().and_then(LastKnown::due);
            let event = match [due, self.ask_at, self.stands_at].into_iter().flatten().min() {
                Some(at) => timeout_at(at, events.next()).await,
                None => Ok(events.next().await),
            };
            match event {
                Err(_) => {}
                Ok(Some(Ok(event))) => self.take(event),
                Ok(Some(Err(error))) => {
                    if let Some(over) = self.failed(&error) {
                        return over;
                    }
                    self.pause(self.longest_wait()).await;
                    self.stands_at = Some(Instant::now() + STANDS);
                }
                // A watcher's stream has no end.
                Ok(None) => return Over::Again,
            }
        }
    }

    /// What time brings: a watch that stands again, objects whose going is to be judged, what is to be written down.
    async fn see_to_what_is_due(&mut self) {
        let now = Instant::now();
        if self.stands_at.is_some_and(|at| at <= now) {
            if self.listing.is_none() && self.read {
                self.recovered();
            } else {
                self.stands_at = Some(now + STANDS);
            }
        }
        let Some(last) = &mut self.last else { return };
        let mut gone = last.expired(now);
        if self.ask_at.is_some_and(|at| at <= now) {
            let standing = definition::standing(&self.client, self.row).await;
            let unknown = matches!(standing, Standing::Unknown(_));
            gone.extend(last.judge(standing, now));
            self.ask_at = (unknown && last.is_in_doubt()).then_some(now + ASK_AGAIN);
        }
        last.save(now).await;
        self.remove(&gone);
        self.tell_of_the_definition();
    }

    fn take(&mut self, event: Event<ApiObject>) {
        match event {
            // Nothing has been heard from the server yet.
            Event::Init => return self.listing = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let Some(listing) = &mut self.listing {
                    if listing.is_empty() {
                        self.hub.answered();
                    }
                    listing.insert(self.hub.name(object.name()));
                }
                self.write(&object);
            }
            Event::Apply(object) => self.write(&object),
            Event::Delete(object) => match &mut self.last {
                Some(last) => {
                    last.unstated(&object.name());
                    self.ask(GATHER);
                }
                None => self.remove(&[self.hub.name(object.name())]),
            },
            Event::InitDone => {
                let present = self.listing.take().unwrap_or_default();
                self.complete(present);
            }
        }
        self.recovered();
    }

    /// Asks in a while whether the definition stands.
    fn ask(&mut self, after: Duration) {
        self.ask_at.get_or_insert(Instant::now() + after);
    }

    /// These objects are gone.
    fn remove(&self, names: &[ObjectName]) {
        for name in names {
            let key = Key { kind: self.row.kind, name: name.clone() };
            self.hub.observe(|statuses| statuses.forget(&key));
            self.hub.write(|ledger| ledger.forget(&Origin::Object(key)));
        }
    }

    /// An operator hears of a definition that is in doubt; and where it is not known which policies there were, no plaintext
    /// is taken.
    fn tell_of_the_definition(&mut self) {
        let Some(last) = &self.last else { return };
        let told = (last.problem(self.row), self.absent && !last.is_known());
        if told == self.told {
            return;
        }
        let origin = Origin::Definition(self.row.kind);
        self.hub.write(|ledger| {
            ledger.set_source_problem(&origin, told.0.clone());
            ledger.set_doubtful(&origin, told.1);
        });
        self.told = told;
    }

    /// The API has this object.
    fn write(&mut self, object: &ApiObject) {
        let name = self.hub.name(object.name());
        if let Some(last) = &mut self.last {
            let mut kept = object.value.clone();
            if let Value::Object(fields) = &mut kept {
                fields.remove("status");
            }
            last.stated(name.clone(), kept, Instant::now());
        }
        self.enforce(name, &object.value);
    }

    /// Reads outside the ledger's lock.
    fn enforce(&self, name: ObjectName, object: &Value) {
        let key = Key { kind: self.row.kind, name };
        let status = (self.row.report == Report::AcceptedCondition).then(|| CurrentStatus::of(object));
        let read = self.hub.read(self.row.kind, object);
        let wanted = status.and_then(|status| status.wanted(read.as_ref().ok()?));
        self.hub.observe(|statuses| statuses.set(&key, wanted));
        let origin = Origin::Object(key);
        let policy = self.row.kind.restricts();
        self.hub.write(|ledger| match read {
            Ok(entry) => ledger.take(&origin, vec![entry], Vec::new()),
            Err(error) => {
                ledger.take(&origin, Vec::new(), vec![Problem::new(&origin, None, error)]);
                ledger.set_doubtful(&origin, policy);
            }
        });
    }

    /// The resource has been read to its end, and has these objects.
    fn complete(&mut self, mut present: HashSet<ObjectName>) {
        debug!(resource = self.row.plural, objects = present.len(), "read");
        if let Some(last) = &mut self.last {
            last.listed(&present, Instant::now());
            // Those that are gone stay until it is known why.
            for (name, object) in self.last.iter().flat_map(LastKnown::objects) {
                if present.insert(name.clone()) && !self.read {
                    self.enforce(name.clone(), object);
                }
            }
            self.ask(Duration::ZERO);
        }
        self.hub.observe(|statuses| statuses.retain(self.row.kind, &present));
        self.hub.write(|ledger| ledger.retain(self.row.kind, self.hub.cluster(), &present));
        self.first_read();
    }

    fn first_read(&mut self) {
        if !std::mem::replace(&mut self.read, true) {
            self.hub.read_one();
        }
    }

    fn recovered(&mut self) {
        self.failures = 0;
        self.stands_at = None;
        self.absent = false;
        if std::mem::take(&mut self.reported) {
            self.hub.set_health(self.row.kind, None);
        }
    }

    /// Decides what a failure means: perhaps nothing, perhaps that the stream is of no more use.
    fn failed(&mut self, error: &watcher::Error) -> Option<Over> {
        use watcher::Error;
        self.failures += 1;
        self.hub.count_error();
        let (code, reason) = match error {
            Error::InitialListFailed(error) | Error::WatchStartFailed(error) | Error::WatchFailed(error) => {
                let code = if let kube::Error::Api(status) = error { status.code } else { 0 };
                (code, sentence(error))
            }
            Error::WatchError(status) => (status.code, status.message.clone()),
            Error::NoResourceVersion => (0, error.to_string()),
        };
        debug!(resource = self.row.plural, code, reason, failures = self.failures, "watch failed");
        let streaming = self.strategy == InitialListStrategy::StreamingList;
        match code {
            // The version to go on from is too old. In the stream, the watcher lists anew of its own accord.
            410 => return matches!(error, Error::WatchStartFailed(_)).then_some(Over::Again),
            // A server that cannot stream a list.
            400 | 422 if streaming && matches!(error, Error::WatchStartFailed(_)) => {
                debug!(resource = self.row.plural, "listing page by page: the server does not stream lists");
                self.strategy = InitialListStrategy::ListWatch;
                self.failures = 0;
                return Some(Over::Again);
            }
            404 if self.row.optional => {
                // A server that starts may not know its custom resources for a moment.
                if self.failures > TO_BE_ABSENT || self.last.is_none() {
                    self.absent();
                }
                return Some(Over::Absent);
            }
            _ => {}
        }
        if self.failures > TOLERATED {
            self.reported = true;
            let failure = match code {
                403 => Failure::Refused(format!("may not be watched ({reason}); {}", self.missing_rule())),
                400..=499 if code != 401 && code != 429 => {
                    Failure::Refused(format!("cannot be watched: {reason}"))
                }
                _ => Failure::Unavailable(reason),
            };
            self.hub.set_health(self.row.kind, Some(failure));
        }
        let over = code != 0 && self.failures.is_multiple_of(TO_START_OVER);
        over.then_some(Over::Again)
    }

    /// The cluster does not have the resource. What it was last known to hold stays, where verdicts depend on it.
    fn absent(&mut self) {
        if !std::mem::replace(&mut self.absent, true) {
            info!(resource = self.row.plural, "not defined in this cluster; it is watched once it is");
        }
        self.listing = None;
        if std::mem::take(&mut self.reported) {
            self.hub.set_health(self.row.kind, None);
        }
        match &mut self.last {
            Some(last) => {
                let gone = last.definition_is_gone(Instant::now());
                self.remove(&gone);
            }
            None => {
                self.hub.observe(|statuses| statuses.retain(self.row.kind, &HashSet::new()));
                self.hub.write(|ledger| ledger.retain(self.row.kind, self.hub.cluster(), &HashSet::new()));
            }
        }
        if !self.read
            && let Some(last) = &self.last
        {
            // What an earlier agent knew.
            last.objects().for_each(|(name, object)| self.enforce(name.clone(), object));
        }
        self.tell_of_the_definition();
        self.first_read();
    }

    /// The rule that the agent's account lacks where it may not watch.
    fn missing_rule(&self) -> String {
        let whose = match self.hub.cluster() {
            Some(_) => "the account in its kubeconfig",
            None => "the agent's account",
        };
        format!(
            "{whose} needs the verbs list and watch on {} (apiGroup {:?}) in a ClusterRole",
            self.row.plural, self.row.group
        )
    }

    fn longest_wait(&self) -> Duration {
        if self.hub.cluster().is_some() { LONGEST_WAIT_ELSEWHERE } else { LONGEST_WAIT }
    }

    async fn pause(&self, longest: Duration) {
        let doubled = FIRST_WAIT * 2_u32.saturating_pow(self.failures.saturating_sub(1).min(16));
        // Half of it by chance, or all agents of a cluster would come at once.
        sleep(doubled.min(longest).mul_f64(rand::random_range(0.5..1.0))).await;
    }
}
