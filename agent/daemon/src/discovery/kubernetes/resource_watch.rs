//! The watch of one resource: list, watch, and what to do when either fails.

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use ambit_core::model::ObjectName;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, InitialListStrategy, watcher},
};
use tokio::time::{sleep, timeout};
use tokio_stream::{Stream, StreamExt};
use tracing::{debug, info};

use super::{Hub, health::Failure, object::ApiObject, policy_status::CurrentStatus};
use crate::{
    cluster::sentence,
    discovery::{
        Origin, Problem,
        kinds::{Entry, Key, Report, Row},
    },
};

/// The first wait after a failure; it doubles with each that follows.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest wait between attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The longest wait for a resource that the cluster does not have.
const ABSENT_WAIT: Duration = Duration::from_secs(15);
/// Failures in a row before they are reported: a server that restarts cuts every watch once.
const TOLERATED: u32 = 1;
/// Answers in a row that a resource which was there is not, before that is believed.
const TO_BE_ABSENT: u32 = 3;
/// Answers with an error in a row after which the resource is listed anew: the version to go on from may be what is
/// wrong, as after etcd was restored from a backup.
const TO_START_OVER: u32 = 6;
/// A watch that has not failed for so long after a failure is taken to stand; the server says nothing of its own accord.
const STANDS: Duration = Duration::from_secs(5);
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
        Self {
            row,
            client,
            hub,
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
                Over::Again => self.pause(LONGEST_WAIT).await,
                Over::Absent => self.pause(ABSENT_WAIT).await,
            }
        }
    }

    async fn follow(
        &mut self,
        mut events: impl Stream<Item = watcher::Result<Event<ApiObject>>> + Unpin,
    ) -> Over {
        loop {
            let event = if self.failures > 0 {
                match timeout(STANDS, events.next()).await {
                    Ok(event) => event,
                    Err(_) if self.listing.is_none() && self.read => {
                        self.recovered();
                        continue;
                    }
                    Err(_) => continue,
                }
            } else {
                events.next().await
            };
            match event {
                Some(Ok(event)) => self.take(event),
                Some(Err(error)) => {
                    if let Some(over) = self.failed(&error) {
                        return over;
                    }
                    self.pause(LONGEST_WAIT).await;
                }
                // A watcher's stream has no end.
                None => return Over::Again,
            }
        }
    }

    fn take(&mut self, event: Event<ApiObject>) {
        match event {
            // Nothing has been heard from the server yet.
            Event::Init => return self.listing = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(object.name());
                }
                self.write(object);
            }
            Event::Apply(object) => self.write(object),
            Event::Delete(object) => {
                let key = self.key_of(&object);
                self.hub.observe(|statuses| statuses.forget(&key));
                self.hub.write(|ledger| ledger.forget(&Origin::Object(key)));
            }
            Event::InitDone => {
                let present = self.listing.take().unwrap_or_default();
                self.complete(&present);
            }
        }
        self.recovered();
    }

    /// Reads outside the ledger's lock.
    fn write(&self, object: ApiObject) {
        let key = self.key_of(&object);
        let status = (self.row.report == Report::AcceptedCondition).then(|| CurrentStatus::of(&object.value));
        let read = Entry::read(self.row.kind, object.value, &self.hub.settings);
        let wanted = status.and_then(|status| status.wanted(read.as_ref().ok()?));
        self.hub.observe(|statuses| statuses.set(&key, wanted));
        let origin = Origin::Object(key);
        self.hub.write(|ledger| match read {
            Ok(entry) => ledger.take(&origin, vec![entry], Vec::new()),
            Err(error) => ledger.take(&origin, Vec::new(), vec![Problem::new(&origin, None, error)]),
        });
    }

    /// The name under which the object is kept, be it a bad one.
    fn key_of(&self, object: &ApiObject) -> Key {
        Key { kind: self.row.kind, name: object.name() }
    }

    /// The resource has been read to its end, and has these objects.
    fn complete(&mut self, present: &HashSet<ObjectName>) {
        debug!(resource = self.row.plural, objects = present.len(), "read");
        self.hub.observe(|statuses| statuses.retain(self.row.kind, present));
        self.hub.write(|ledger| ledger.retain(self.row.kind, present));
        if !std::mem::replace(&mut self.read, true) {
            self.hub.read_one();
        }
    }

    fn recovered(&mut self) {
        self.failures = 0;
        self.absent = false;
        if std::mem::take(&mut self.reported) {
            self.hub.set_health(self.row.kind, None);
        }
    }

    /// Decides what a failure means: perhaps nothing, perhaps that the stream is of no more use.
    fn failed(&mut self, error: &watcher::Error) -> Option<Over> {
        use watcher::Error;
        self.failures += 1;
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
                // Policies are not dropped at once: a server that starts may not know its custom resources for a moment.
                if self.failures > if self.read { TO_BE_ABSENT } else { TOLERATED } {
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

    /// The cluster does not have the resource: it counts as empty.
    fn absent(&mut self) {
        if !std::mem::replace(&mut self.absent, true) {
            info!(
                resource = self.row.plural,
                "not defined in this cluster; it counts as empty, and is watched once it is"
            );
        }
        self.listing = None;
        if std::mem::take(&mut self.reported) {
            self.hub.set_health(self.row.kind, None);
        }
        self.complete(&HashSet::new());
    }

    /// The rule that the agent's account lacks where it may not watch.
    fn missing_rule(&self) -> String {
        format!(
            "the agent's account needs the verbs list and watch on {} (apiGroup {:?}) in a ClusterRole",
            self.row.plural, self.row.group
        )
    }

    async fn pause(&self, longest: Duration) {
        let doubled = FIRST_WAIT * 2_u32.saturating_pow(self.failures.saturating_sub(1).min(16));
        // Half of it by chance, or all agents of a cluster would come at once.
        sleep(doubled.min(longest).mul_f64(rand::random_range(0.5..1.0))).await;
    }
}
