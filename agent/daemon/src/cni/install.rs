//! The plugin's binary and its place in the node's network configuration: put in, kept, taken out.
//!
//! Promises that files change in one step, that what cannot be understood is left alone, and that of several agents on a
//! node only the one that started last keeps the installation. What its text looks like is left to [`super::conflist`].

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde_json::json;
use zeroize::Zeroizing;

use super::{CniError, conflist, credentials, places, protocol::BINARY, state::State};
use crate::files::{self, Stamp};

/// How often everything is looked at without an event.
const POLL: Duration = Duration::from_secs(5);
/// How long a folder must be left alone after an event.
const QUIET: Duration = Duration::from_millis(100);
/// The longest network configuration read, in bytes.
const MAX_CONF: u64 = 1024 * 1024;
/// Says which agent keeps the installation.
const CLAIM: &str = "ambit-cni.claim";
/// What a single configuration that became a list is kept as: no runtime reads files of this ending.
const SAVED: &str = "ambit-saved";

/// What a look at the installation had to put in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Repairs {
    /// The binary was missing or another one.
    pub(crate) binary: bool,
    /// The entry in the network configuration was missing or another one.
    pub(crate) network: bool,
}

/// The installation on one node. Folders are named as the node itself sees them.
#[derive(Debug)]
pub(crate) struct Installer {
    bin_dir: PathBuf,
    conf_dir: PathBuf,
    entry: String,
    claim: Claim,
    /// How the binary looked when it was last known to be ours.
    installed: Option<Stamp>,
}

/// Grows with every agent that starts on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    generation: u64,
    agent: String,
}

/// Keeps the installation until it is dropped; what is installed stays.
#[derive(Debug)]
pub(crate) struct Installed {
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Installed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A full channel means that the thread wakes anyway.
        let _ = self.wake.try_send(());
        // A look under way ends before anybody undoes what it does.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

impl Installer {
    /// Takes over the installation from whichever agent has it. `agent` tells this one from all others.
    pub(crate) fn claim(
        bin_dir: &Path,
        conf_dir: &Path,
        run_dir: &Path,
        agent: String,
    ) -> Result<Self, CniError> {
        let before = Claim::read(conf_dir).map_or(0, |claim| claim.generation);
        let claim = Claim { generation: before + 1, agent };
        claim.write(conf_dir)?;
        places::write_down(run_dir, bin_dir, conf_dir);
        let entry = json!({ "type": BINARY, "runDir": run_dir, "stateDir": conf_dir });
        let (bin_dir, conf_dir) = (bin_dir.to_owned(), conf_dir.to_owned());
        Ok(Self { bin_dir, conf_dir, entry: entry.to_string(), claim, installed: None })
    }

    /// Looks at the installation and puts it in order. Does nothing once another agent has taken over.
    pub(crate) fn look(&mut self) -> Result<Repairs, CniError> {
        match Claim::read(&self.conf_dir) {
            Some(other) if other != self.claim && other.generation >= self.claim.generation => {
                return Ok(Repairs::default());
            }
            Some(own) if own == self.claim => {}
            _ => self.claim.write(&self.conf_dir)?,
        }
        // The binary first: no configuration may name one that is not there.
        Ok(Repairs { binary: self.keep_binary()?, network: self.keep_entry()? })
    }

    /// Looks again whenever a folder changes and every few seconds. `report` hears of every look.
    pub(crate) fn follow(
        mut self,
        report: impl Fn(Result<Repairs, CniError>) + Send + 'static,
    ) -> Result<Installed, CniError> {
        let (wake, woken) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, events) = (stop.clone(), wake.clone());
        let thread = thread::Builder::new().name("ambit-cni".into()).spawn(move || {
            let mut watcher = notify::recommended_watcher(move |_| {
                // A full channel means that the thread is about to look anyway.
                let _ = events.try_send(());
            });
            let mut watched = false;
            while !stopped.load(Ordering::Relaxed) {
                // Before looking, or what changes in between would wait for the next poll.
                watched = watched || watch(&mut watcher, [&self.bin_dir, &self.conf_dir]);
                report(self.look());
                // Our own writes wake us too.
                while woken.try_recv().is_ok() {}
                if !stopped.load(Ordering::Relaxed) && woken.recv_timeout(POLL).is_ok() {
                    thread::sleep(QUIET);
                }
            }
        });
        let thread = thread.map_err(CniError::file("start a thread to watch", "the CNI folders"))?;
        Ok(Installed { stop, wake, thread: Some(thread) })
    }

    fn keep_binary(&mut self) -> Result<bool, CniError> {
        let path = self.bin_dir.join(BINARY);
        let found = Stamp::of(&path);
        if found.is_some() && found == self.installed {
            return Ok(false);
        }
        let own = Path::new("/proc/self/exe");
        let same = same_content(own, &path).unwrap_or(false) && is_executable(&path);
        if !same {
            fs::create_dir_all(&self.bin_dir).map_err(CniError::file("make", &self.bin_dir))?;
            let mut own = File::open(own).map_err(CniError::file("read", own))?;
            let copied = files::replace_by(&path, 0o755, |file| io::copy(&mut own, file).map(drop));
            copied.map_err(CniError::file("write", &path))?;
        }
        self.installed = Stamp::of(&path);
        Ok(!same)
    }

    fn keep_entry(&self) -> Result<bool, CniError> {
        let networks = networks(&self.conf_dir)?;
        let (first, others) =
            networks.split_first().ok_or_else(|| CniError::NoNetwork(self.conf_dir.clone()))?;
        // What a list was made of and is there again was written by its owner, and is newer than the list.
        let rewritten = others.iter().find(|other| {
            !is_list(other) && other.with_extension("conflist") == *first && saved(other).exists()
        });
        let changed = match rewritten {
            Some(single) => self.convert(single)?,
            None if is_list(first) => self.extend(first)?,
            None => self.convert(first)?,
        };
        for other in
            others.iter().filter(|other| is_list(other) && **other != first.with_extension("conflist"))
        {
            // The first one by name was another when the entry came here.
            take_out(other)?;
        }
        Ok(changed)
    }

    fn extend(&self, list: &Path) -> Result<bool, CniError> {
        let text = read(list)?;
        match conflist::with_entry(&text, &self.entry).map_err(unusable(list))? {
            Some(new) => replace(list, &new).map(|()| true),
            None => Ok(false),
        }
    }

    /// Makes a list of a single configuration, which is kept aside.
    fn convert(&self, single: &Path) -> Result<bool, CniError> {
        let list = single.with_extension("conflist");
        let foreign = list.exists() && !read(&list).is_ok_and(|text| conflist::has_entry(&text));
        if foreign {
            return Err(unusable(single)(format!("{} stands beside it", list.display())));
        }
        let new = conflist::from_single(&read(single)?, &self.entry).map_err(unusable(single))?;
        write(&list, &new, mode(single))?;
        let saved = saved(single);
        fs::rename(single, &saved).map_err(CniError::file("set aside", single))?;
        Ok(true)
    }
}

/// Takes the plugin off a node, its configuration first; names what was removed.
pub(crate) fn uninstall(bin_dir: &Path, conf_dir: &Path) -> Result<Vec<String>, CniError> {
    let mut removed = take_out_of(conf_dir)?;
    removed.extend(remove_binary(bin_dir)?);
    Ok(removed)
}

/// Takes everything of the plugin out of a folder of network configurations.
pub(super) fn take_out_of(conf_dir: &Path) -> Result<Vec<String>, CniError> {
    let mut removed = Vec::new();
    // Before all else, or an agent that still runs would repair what goes.
    let claim = Claim { generation: u64::MAX, agent: "uninstalled".to_owned() };
    if conf_dir.is_dir() {
        claim.write(conf_dir)?;
        for list in networks(conf_dir)?.iter().filter(|network| is_list(network)) {
            if take_out(list)? {
                removed.push(format!("entry {BINARY} in {}", list.display()));
            }
        }
    }
    State::remove(conf_dir);
    for file in [credentials::path(conf_dir), conf_dir.join(CLAIM)] {
        let _absent: io::Result<()> = fs::remove_file(file);
    }
    Ok(removed)
}

/// Removes the plugin itself.
pub(super) fn remove_binary(bin_dir: &Path) -> Result<Option<String>, CniError> {
    let binary = bin_dir.join(BINARY);
    match fs::remove_file(&binary) {
        Ok(()) => Ok(Some(binary.display().to_string())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(CniError::file("remove", binary)(error)),
    }
}

/// Whether an agent has installed the plugin in this folder; one of `node`, if that is named.
pub(super) fn is_traced(conf_dir: &Path, node: Option<&str>) -> bool {
    let claim = Claim::read(conf_dir);
    if let Some(node) = node {
        // What an agent calls itself begins with its node; its process and when it started follow.
        return claim.is_some_and(|claim| claim.agent.rsplitn(3, '-').nth(2) == Some(node));
    }
    let entered = || {
        let lists = networks(conf_dir).unwrap_or_default();
        lists
            .iter()
            .filter(|network| is_list(network))
            .any(|list| read(list).is_ok_and(|text| conflist::has_entry(&text)))
    };
    claim.is_some() || entered()
}

/// Takes the entry out of a list; whether there was one.
fn take_out(list: &Path) -> Result<bool, CniError> {
    let text = read(list)?;
    // A list that cannot be read has no entry of ours that anybody could use.
    let Ok(Some(without)) = conflist::without_entry(&text) else { return Ok(false) };
    let single = ["conf", "json"]
        .map(|ending| list.with_extension(ending))
        .into_iter()
        .find(|single| saved(single).exists());
    match single {
        Some(single) => {
            if !single.exists() {
                fs::rename(saved(&single), &single).map_err(CniError::file("put back", &single))?;
            } else {
                // Somebody has written a new one meanwhile, which is in force again.
                let _stale: io::Result<()> = fs::remove_file(saved(&single));
            }
            fs::remove_file(list).map_err(CniError::file("remove", list))?;
        }
        None => replace(list, &without)?,
    }
    Ok(true)
}

/// The network configurations in the order in which container runtimes take them: the first one counts.
fn networks(conf_dir: &Path) -> Result<Vec<PathBuf>, CniError> {
    let entries = fs::read_dir(conf_dir).map_err(CniError::file("read", conf_dir))?;
    let mut networks: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let ending = path.extension().and_then(std::ffi::OsStr::to_str);
            matches!(ending, Some("conf" | "conflist" | "json")) && path.is_file()
        })
        .collect();
    networks.sort();
    Ok(networks)
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "conflist")
}

fn saved(single: &Path) -> PathBuf {
    let name = single.file_name().unwrap_or_default().to_string_lossy();
    single.with_file_name(format!("{name}.{SAVED}"))
}

fn read(path: &Path) -> Result<Zeroizing<String>, CniError> {
    files::read_text(path, MAX_CONF).map_err(|error| CniError::file("read", path)(error.into_problem()))
}

/// Gives a list a new text, where it really is if the path is a link.
fn replace(list: &Path, text: &str) -> Result<(), CniError> {
    let list = fs::canonicalize(list).map_err(CniError::file("find", list))?;
    write(&list, text, mode(&list))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), CniError> {
    files::replace(path, text.as_bytes(), mode).map_err(CniError::file("write", path))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).map_or(0o644, |found| found.mode() & 0o777)
}

fn unusable(path: &Path) -> impl FnOnce(String) -> CniError {
    let path = path.to_owned();
    move |why| CniError::Unusable { path, why }
}

fn watch(watcher: &mut notify::Result<RecommendedWatcher>, folders: [&PathBuf; 2]) -> bool {
    let Ok(watcher) = watcher else { return false };
    folders.into_iter().all(|folder| watcher.watch(folder, RecursiveMode::NonRecursive).is_ok())
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o111 == 0o111)
}

fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    if fs::metadata(one)?.len() != fs::metadata(other)?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (vec![0; 256 * 1024], vec![0; 256 * 1024]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

impl Claim {
    fn read(conf_dir: &Path) -> Option<Self> {
        let text = read(&conf_dir.join(CLAIM)).ok()?;
        let (generation, agent) = text.trim().split_once(' ')?;
        Some(Self { generation: generation.parse().ok()?, agent: agent.to_owned() })
    }

    fn write(&self, conf_dir: &Path) -> Result<(), CniError> {
        let text = format!("{} {}\n", self.generation, self.agent);
        write(&conf_dir.join(CLAIM), &text, 0o644)
    }
}

#[cfg(test)]
mod tests;
