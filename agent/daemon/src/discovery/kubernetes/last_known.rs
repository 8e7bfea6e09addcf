//! What a resource was last known to hold that may go as a whole, with its definition.
//!
//! Promises that an object counts as gone only where somebody has removed that object: not because its definition was removed,
//! and not because a new definition begins empty. What goes so stays in force for a bounded time, also over a restart of the
//! agent, for which it is kept in a file. Asking the API is left to others.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambit_core::model::ObjectName;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    discovery::{PolicyHold, kinds::Row},
    files,
};

/// The most that is kept over a restart, in bytes.
const MAX_FILE: u64 = 32 << 20;
/// How long changes are gathered before they are written down.
const GATHER: Duration = Duration::from_secs(1);

/// What the API says of a resource's definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is there, under this UID.
    Stands(String),
    /// It is being removed, with all objects.
    Ending,
    /// It is not there.
    Absent,
    /// That cannot be told, for this reason.
    Unknown(String),
}

/// The objects of one resource.
#[derive(Debug)]
pub(super) struct LastKnown {
    hold: Duration,
    file: Option<PathBuf>,
    /// The resource has been read to its end at some time, be it by an earlier agent.
    known: bool,
    /// The UID of the definition under which it was.
    definition: Option<String>,
    objects: BTreeMap<ObjectName, Value>,
    /// Gone from the API; whether somebody removed them is not known yet.
    missing: BTreeSet<ObjectName>,
    /// Gone with their definition: they stay until the time is over.
    held: BTreeSet<ObjectName>,
    until: Option<Until>,
    /// Why it could not be told last whether the definition stands.
    unknown: Option<String>,
    save_at: Option<Instant>,
}

/// When the time is over, for this process and as an operator reads it.
#[derive(Debug)]
struct Until {
    at: Instant,
    text: String,
}

impl Until {
    fn after(left: Duration, now: Instant) -> Self {
        let text = humantime::format_rfc3339_seconds(SystemTime::now() + left).to_string();
        Self { at: now + left, text }
    }
}

/// As it is in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    version: u32,
    definition: Option<String>,
    /// When objects began to be held, in seconds since 1970.
    held_since: Option<u64>,
    objects: Vec<KeptObject>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptObject {
    namespace: String,
    name: String,
    object: Value,
    #[serde(default)]
    held: bool,
}

const VERSION: u32 = 1;

impl LastKnown {
    /// What an earlier agent left of the resource, if it did.
    pub(super) fn load(row: &Row, settings: &PolicyHold, now: Instant) -> Self {
        let file =
            settings.folder.as_ref().map(|folder| folder.join(format!("ambit.last-{}.json", row.plural)));
        let mut last = Self {
            hold: settings.time,
            file,
            known: row.kind.may_be_undefined(),
            definition: None,
            objects: BTreeMap::new(),
            missing: BTreeSet::new(),
            held: BTreeSet::new(),
            until: None,
            unknown: None,
            save_at: None,
        };
        if let Some(kept) = last.read() {
            last.known = true;
            last.definition = kept.definition;
            for KeptObject { namespace, name, object, held } in kept.objects {
                let name = ObjectName::new(namespace, name);
                if held {
                    last.held.insert(name.clone());
                }
                last.objects.insert(name, object);
            }
            let waited = kept.held_since.map(|since| seconds_now().saturating_sub(since));
            let left = waited.map(|waited| last.hold.saturating_sub(Duration::from_secs(waited)));
            last.until = left.map(|left| Until::after(left, now));
        }
        last
    }

    fn read(&self) -> Option<Kept> {
        let path = self.file.as_ref().filter(|path| path.exists())?;
        let kept = files::read(path, MAX_FILE)
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
            .and_then(|kept: Kept| match kept.version {
                VERSION => Ok(kept),
                version => Err(format!("version {version}, not {VERSION}")),
            });
        kept.inspect_err(
            |error| tracing::warn!(file = %path.display(), error, "the policies last known cannot be read"),
        )
        .ok()
    }

    /// Whether it is known what the resource held at some time.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// All objects that are to be in force.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&ObjectName, &Value)> {
        self.objects.iter()
    }

    /// The API has the object.
    pub(super) fn stated(&mut self, name: ObjectName, object: Value, now: Instant) {
        self.missing.remove(&name);
        self.held.remove(&name);
        if self.objects.get(&name) != Some(&object) {
            self.objects.insert(name, object);
            self.changed(now);
        }
        self.settle();
    }

    /// The API does not have the object any more.
    pub(super) fn unstated(&mut self, name: &ObjectName) {
        if self.objects.contains_key(name) && !self.held.contains(name) {
            self.missing.insert(name.clone());
        }
    }

    /// The API has these objects and no others.
    pub(super) fn listed(&mut self, present: &HashSet<ObjectName>, now: Instant) {
        let gone = self.objects.keys().filter(|name| !present.contains(*name) && !self.held.contains(*name));
        self.missing = gone.cloned().collect();
        self.known = true;
        self.changed(now);
        self.settle();
    }

    /// Whether it has to be asked if the definition stands.
    pub(super) fn is_in_doubt(&self) -> bool {
        !self.missing.is_empty()
    }

    /// The definition stands so: answers with the objects that are gone because somebody removed them.
    pub(super) fn judge(&mut self, standing: Standing, now: Instant) -> Vec<ObjectName> {
        self.unknown = None;
        match standing {
            Standing::Stands(uid) => {
                if self.definition.as_ref() == Some(&uid) {
                    let gone = std::mem::take(&mut self.missing).into_iter().collect();
                    let gone = self.forget(gone, now);
                    self.settle();
                    return gone;
                }
                self.definition = Some(uid);
                self.changed(now);
                self.hold(now);
            }
            Standing::Ending | Standing::Absent => self.hold(now),
            Standing::Unknown(reason) => {
                self.unknown = Some(reason);
                if !self.missing.is_empty() {
                    self.wait(now);
                }
            }
        }
        self.expired(now)
    }

    /// The definition is not there, and neither is any object. Answers with those that have been held long enough.
    pub(super) fn definition_is_gone(&mut self, now: Instant) -> Vec<ObjectName> {
        self.missing = self.objects.keys().filter(|name| !self.held.contains(*name)).cloned().collect();
        self.hold(now);
        if !self.known {
            self.wait(now);
        }
        self.expired(now)
    }

    fn hold(&mut self, now: Instant) {
        if self.missing.is_empty() {
            return;
        }
        self.held.append(&mut self.missing);
        self.wait(now);
        self.changed(now);
    }

    fn wait(&mut self, now: Instant) {
        self.until.get_or_insert_with(|| Until::after(self.hold, now));
    }

    /// With nothing in doubt there is nothing to wait for.
    fn settle(&mut self) {
        if self.known && self.held.is_empty() && self.missing.is_empty() {
            self.until = None;
        }
    }

    /// The objects that have been held long enough.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<ObjectName> {
        if self.until.as_ref().is_none_or(|until| now < until.at) {
            return Vec::new();
        }
        self.until = None;
        self.known = true;
        let gone =
            std::mem::take(&mut self.held).into_iter().chain(std::mem::take(&mut self.missing)).collect();
        self.changed(now);
        self.forget(gone, now)
    }

    fn forget(&mut self, gone: Vec<ObjectName>, now: Instant) -> Vec<ObjectName> {
        for name in &gone {
            self.objects.remove(name);
        }
        if !gone.is_empty() {
            self.changed(now);
        }
        gone
    }

    /// What an operator has to know of it; none if nothing is in doubt.
    pub(super) fn problem(&self, row: &Row) -> Option<String> {
        let Until { text: until, .. } = self.until.as_ref()?;
        let (plural, count) = (row.plural, self.held.len() + self.missing.len());
        if count == 0 {
            return Some(format!(
                "is not there, and which policies there were is not known: {} until it is, at the latest until {until}. Install \
                 it; for a cluster without policies start the agents with --policy-hold 0s",
                row.kind.while_unknown()
            ));
        }
        let why = self.unknown.as_ref().map_or_else(
            || "was removed".to_owned(),
            |reason| format!("cannot be looked at ({reason}), and objects are gone"),
        );
        Some(format!(
            "{why}: {count} {plural} that nobody has stated since stay in force until {until}. To confirm that one is to go, \
             apply it under the new definition and delete it; to have all go at once, start the agents with --policy-hold 0s"
        ))
    }

    /// When there is something to do without an event.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.until.as_ref().map(|until| until.at), self.save_at].into_iter().flatten().min()
    }

    fn changed(&mut self, now: Instant) {
        if self.known {
            self.save_at.get_or_insert(now + GATHER);
        }
    }

    /// Writes down what has changed, if that is due.
    pub(super) async fn save(&mut self, now: Instant) {
        if self.save_at.is_none_or(|at| now < at) {
            return;
        }
        self.save_at = None;
        let Some(path) = self.file.clone() else { return };
        let content = self.kept(now);
        let write = move || match serde_json::to_vec(&content) {
            Ok(bytes) if bytes.len() as u64 <= MAX_FILE => files::replace(&path, &bytes, 0o600),
            // Half of them would be taken for all.
            Ok(_) => std::fs::remove_file(&path).and(Err(io::Error::other("too many to be kept"))),
            Err(error) => Err(error.into()),
        };
        // The pool refuses only while the runtime ends.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!(%error, "the policies last known cannot be kept over a restart of the agent");
        }
    }

    fn kept(&self, now: Instant) -> Kept {
        let left = self.until.as_ref().map(|until| until.at.saturating_duration_since(now));
        let held_for = left.map(|left| self.hold.saturating_sub(left));
        let object = |(name, object): (&ObjectName, &Value)| KeptObject {
            namespace: name.namespace.as_ref().to_owned(),
            name: name.name.as_ref().to_owned(),
            object: object.clone(),
            held: self.held.contains(name),
        };
        Kept {
            version: VERSION,
            definition: self.definition.clone(),
            held_since: held_for.map(|held_for| seconds_now().saturating_sub(held_for.as_secs())),
            objects: self.objects.iter().map(object).collect(),
        }
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
