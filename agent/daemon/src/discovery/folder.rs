//! The watched folder: a thread that keeps the ledger in step with the files.
//!
//! Promises that changes are seen within a second whether or not inotify tells of them, and that the folder may go and
//! come back. A file is read only when it has been left alone for a moment, so that half-written ones are rarely met.

pub(super) mod documents;
pub(super) mod file;
pub(super) mod manifest;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant, SystemTime},
};

use ambit_core::discovery::Settings;
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tracing::{debug, info, warn};

use super::{DiscoveryError, Feed, Origin, Shared, ledger::Ledger};
use documents::Syntax;
use file::{Found, Stamp};

/// Manifests in one folder.
const MAX_FILES: usize = 10_000;
/// How long a file, and the folder, must be left alone before it is read.
const QUIET: Duration = Duration::from_millis(100);
/// The longest that events may keep the folder from being read.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often the files are looked at without an event: links into other folders, file systems without inotify.
const POLL: Duration = Duration::from_millis(500);
/// The same with more than [`FEW_FILES`] files.
const SLOW_POLL: Duration = Duration::from_secs(2);
/// So many files are looked at in a few milliseconds.
const FEW_FILES: usize = 1_000;

/// Reads the folder and starts the thread that watches it for as long as the feed has a handle.
pub(super) fn watch(dir: &Path, settings: Settings) -> Result<Feed, DiscoveryError> {
    let failed = |source| DiscoveryError::Folder { folder: dir.to_owned(), source };
    let path = std::path::absolute(dir).map_err(failed)?;
    std::fs::read_dir(&path).map_err(failed)?;

    let (wake, woken) = sync_channel(1);
    let mut watcher = FolderWatcher { dir: path.clone(), wake, active: None, warned: false };
    // Before the first reading, or a change between the two would go unseen until the next poll.
    watcher.rearm();
    let feed = Feed::new(settings.clone());
    let mut folder = Folder::new(path, settings);
    feed.shared.update(|ledger| folder.scan(ledger));
    let problems = feed.world().problems.len();
    info!(folder = %folder.dir.display(), files = folder.known.len(), problems, "manifests read");

    let shared = Arc::downgrade(&feed.shared);
    thread::Builder::new()
        .name("ambit-manifests".into())
        .spawn(move || follow(folder, watcher, &woken, &shared))
        .map_err(|source| DiscoveryError::Thread { folder: dir.to_owned(), source })?;
    Ok(feed)
}

fn follow(mut folder: Folder, mut watcher: FolderWatcher, woken: &Receiver<()>, shared: &Weak<Shared>) {
    loop {
        watcher.rearm();
        match woken.recv_timeout(folder.pause()) {
            Ok(()) => wait_for_quiet(woken),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => thread::sleep(POLL),
        }
        let Some(shared) = shared.upgrade() else { return };
        shared.update(|ledger| folder.scan(ledger));
    }
}

fn wait_for_quiet(woken: &Receiver<()>) {
    let start = Instant::now();
    while start.elapsed() < PATIENCE && woken.recv_timeout(QUIET).is_ok() {}
}

/// The files as they were read last.
#[derive(Debug)]
struct Folder {
    dir: PathBuf,
    settings: Settings,
    /// What was found of each file when it was read; none for a file that must be read again in any case.
    known: BTreeMap<OsString, Option<Found>>,
    /// Some file was written to too lately to be read, or to be trusted to have been read whole.
    unsettled: bool,
    started: bool,
}

/// The manifests of a folder by name.
struct Listing {
    names: BTreeSet<OsString>,
    overflow: bool,
}

impl Folder {
    fn new(dir: PathBuf, settings: Settings) -> Self {
        Self { dir, settings, known: BTreeMap::new(), unsettled: false, started: false }
    }

    /// How long to wait for an event.
    fn pause(&self) -> Duration {
        match self.known.len() {
            _ if self.unsettled => QUIET,
            0..=FEW_FILES => POLL,
            _ => SLOW_POLL,
        }
    }

    /// Looks at every file and reads those that changed into the ledger.
    fn scan(&mut self, ledger: &mut Ledger) {
        self.unsettled = false;
        let origin = Origin::file(&self.dir);
        match list(&self.dir) {
            Ok(listing) => {
                let problem = format!(
                    "holds more than {MAX_FILES} manifests; those that come last by name are not read. As they may hold \
                     policies, mutual TLS is STRICT for every pod until there are fewer; of an agent that has started so, \
                     nobody is let in to any pod"
                );
                ledger.set_source_problem(&origin, listing.overflow.then_some(problem));
                ledger.set_doubtful(&origin, listing.overflow);
                self.visit(listing, ledger);
            }
            Err(error) => {
                let problem = format!("cannot be read: {error}; what it held before stays in force");
                ledger.set_source_problem(&origin, Some(problem));
            }
        }
        self.started = true;
        ledger.complete();
    }

    fn visit(&mut self, listing: Listing, ledger: &mut Ledger) {
        let mut present = BTreeSet::new();
        for name in listing.names {
            if self.visit_file(&name, ledger) {
                present.insert(name);
            }
        }
        // With too many files one that was pushed off the list is not gone.
        if !listing.overflow {
            for name in self.known.keys().filter(|name| !present.contains(*name)) {
                ledger.forget(&Origin::file(&self.dir.join(name)));
            }
            self.known.retain(|name, _| present.contains(name));
        }
    }

    /// Whether the file is still there.
    fn visit_file(&mut self, name: &OsString, ledger: &mut Ledger) -> bool {
        let path = self.dir.join(name);
        let Some(found) = file::inspect(&path) else { return false };
        if self.known.get(name).is_some_and(|known| known.as_ref() == Some(&found)) {
            return true;
        }
        let known = match &found {
            Found::Unusable(reason) => {
                ledger.refuse(&Origin::file(&path), reason);
                Some(found)
            }
            Found::File(stamp) if self.started && !is_settled(stamp) => {
                self.unsettled = true;
                self.known.entry(name.clone()).or_default();
                return true;
            }
            Found::File(stamp) => self.read(&path, stamp, ledger),
        };
        self.unsettled |= known.is_none();
        self.known.insert(name.clone(), known);
        true
    }

    /// Reads a file into the ledger; what was found of it if nothing can have changed meanwhile.
    fn read(&self, path: &Path, before: &Stamp, ledger: &mut Ledger) -> Option<Found> {
        let origin = Origin::file(path);
        match file::read(path) {
            Ok((bytes, stamp)) => {
                let json = path.extension().is_some_and(|extension| extension == "json");
                let syntax = if json { Syntax::Json } else { Syntax::Yaml };
                manifest::take(ledger, &origin, documents::read(&bytes, syntax), &self.settings);
                debug!(file = %path.display(), bytes = bytes.len(), "manifest read");
                (stamp == *before && is_settled(&stamp)).then_some(Found::File(stamp))
            }
            Err(reason) => {
                ledger.refuse(&origin, &reason);
                None
            }
        }
    }
}

/// Whether a file has been left alone long enough. A later write in the same tick of the kernel's clock could otherwise
/// look like none. A file from the future (a clock set back) counts as settled, or it would never be read.
fn is_settled(stamp: &Stamp) -> bool {
    SystemTime::now().duration_since(stamp.changed()).map_or(true, |age| age >= QUIET)
}

fn list(dir: &Path) -> io::Result<Listing> {
    let mut listing = Listing { names: BTreeSet::new(), overflow: false };
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !is_manifest(&name) {
            continue;
        }
        listing.names.insert(name);
        if listing.names.len() > MAX_FILES {
            listing.overflow = true;
            listing.names.pop_last();
        }
    }
    Ok(listing)
}

/// By name: editors' swap and lock files are hidden, their backups end otherwise.
pub(super) fn is_manifest(name: &OsString) -> bool {
    let extension = Path::new(name).extension().and_then(std::ffi::OsStr::to_str);
    !name.as_encoded_bytes().starts_with(b".") && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Tells of changes by inotify, as long as the folder that it watches is the one at the path.
struct FolderWatcher {
    dir: PathBuf,
    wake: SyncSender<()>,
    active: Option<(RecommendedWatcher, (u64, u64))>,
    warned: bool,
}

impl FolderWatcher {
    /// Watches the folder that is at the path now; polling goes on without if that fails.
    fn rearm(&mut self) {
        let Ok(found) = std::fs::metadata(&self.dir).map(|metadata| (metadata.dev(), metadata.ino())) else {
            self.active = None;
            return;
        };
        if self.active.as_ref().is_some_and(|(_, watched)| *watched == found) {
            return;
        }
        self.active = None;
        match self.start() {
            Ok(watcher) => {
                self.active = Some((watcher, found));
                self.warned = false;
                // What changed before the watch began.
                self.wake.try_send(()).ok();
            }
            Err(error) if !self.warned => {
                warn!(folder = %self.dir.display(), %error, "cannot watch the folder by inotify; polling it");
                self.warned = true;
            }
            Err(_) => {}
        }
    }

    fn start(&self) -> notify::Result<RecommendedWatcher> {
        let wake = self.wake.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Our own reading opens and closes files too.
            let idle = |kind| matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write));
            if !event.is_ok_and(|event| idle(event.kind)) {
                // A full channel means that the thread is about to look anyway.
                wake.try_send(()).ok();
            }
        })?;
        watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

#[cfg(test)]
mod tests;
