//! What was last known of other clusters, in files on the node: an agent that starts goes by it until it has read them itself.
//!
//! Promises that a file is replaced in one step and holds a cluster that has been read to its end, that what is bad in one loses
//! nothing of it that is good, and that writing takes a hundredth of the time at most. Without it pods that are dialled by their own
//! address would go for addresses outside the mesh as long as their cluster's API is away.

mod object;

use std::{
    collections::HashMap,
    fs,
    io::{self, BufWriter, Write as _},
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambit_core::{
    discovery::{Change, Mesh, Settings},
    model::TrustDomain,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{ClusterLocal, Shared, remotes};
use crate::{
    discovery::{
        Origin,
        kinds::{Entry, Kind},
    },
    files,
};

/// The longest file, in bytes: room for 200,000 objects, and more than they usually take.
const MAX_FILE: u64 = 256 << 20;
/// How often it is looked whether there is something to write down.
const EVERY: Duration = Duration::from_secs(2);
/// What was just written takes this many times as long until it is written again, but no longer than that.
const REST: u32 = 100;
const LONGEST_REST: Duration = Duration::from_secs(10 * 60);
/// Until what could not be written is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(30);
/// The longest name of a cluster that is in a file's name.
const MAX_NAME: usize = 200;
const VERSION: u32 = 1;

/// The first line of a file. Each further line is an object, the last one a [`Footer`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    version: u32,
    cluster: String,
    trust_domain: String,
    /// Seconds since 1970.
    written: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Footer {
    objects: usize,
}

/// A folder with a file for each cluster.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    folder: PathBuf,
}

/// What was known of a cluster.
#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) cluster: Arc<str>,
    pub(super) trust_domain: TrustDomain,
    /// When it was written down.
    pub(super) written: SystemTime,
    pub(super) entries: Vec<Entry>,
}

impl Memory {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// What is wrong with a cluster's file is told under this.
    pub(super) fn origin(&self, cluster: &str) -> Origin {
        Origin::file(&self.file(cluster))
    }

    /// All clusters of which something was known, and what is wrong with files.
    pub(super) fn recall(
        &self,
        settings: &Settings,
        local: &ClusterLocal,
    ) -> (Vec<Remembered>, Vec<(Origin, String)>) {
        let (mut all, mut problems) = (Vec::new(), Vec::new());
        for cluster in self.names().take(remotes::MAX_CLUSTERS) {
            let path = self.file(&cluster);
            let problem = match files::read(&path, MAX_FILE) {
                Ok(content) => match read(&cluster, &content, settings, local) {
                    Ok((remembered, problem)) => {
                        all.push(remembered);
                        problem
                    }
                    Err(problem) => Some(problem),
                },
                Err(error) => Some(error.into_problem().to_string()),
            };
            if let Some(problem) = problem {
                let text = format!(
                    "what was last known of cluster {cluster} cannot be read, or not all of it: {problem}. Until its API has answered, \
                     connections to its pods that are not known go as they are dialled, unless its Secret says where they are"
                );
                problems.push((Origin::file(&path), text));
            }
        }
        (all, problems)
    }

    /// Forgets all clusters but those that are `named`; says which these were.
    pub(super) fn retain(&self, named: impl Fn(&str) -> bool) -> Vec<String> {
        let forgotten: Vec<String> = self.names().filter(|cluster| !named(cluster)).collect();
        for cluster in &forgotten {
            let path = self.file(cluster);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, file = %path.display(), "what was known of a cluster that is named no more stays there");
            }
        }
        forgotten
    }

    /// Writes down what `mesh` knows of a cluster.
    fn write(&self, cluster: &Arc<str>, trust_domain: &TrustDomain, mesh: &Mesh) -> io::Result<()> {
        if !is_file_name(cluster) {
            return Err(io::Error::other(format!(
                "no file can bear its name, which is longer than {MAX_NAME} letters or has others than A-Z, a-z, 0-9, '-', '_' and '.'"
            )));
        }
        let written = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let trust_domain = trust_domain.as_str().to_owned();
        let header = Header { version: VERSION, cluster: cluster.to_string(), trust_domain, written };
        let mut whole = true;
        files::replace_by(&self.file(cluster), 0o600, |file| {
            let mut out = BufWriter::new(file);
            whole = lines(&mut out, &header, mesh.known_of(cluster), MAX_FILE)?;
            out.flush()
        })?;
        if whole {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "it takes more than {} MiB, and some endpoints are left out",
            MAX_FILE >> 20
        )))
    }

    fn file(&self, cluster: &str) -> PathBuf {
        self.folder.join(format!("{PREFIX}{cluster}{SUFFIX}"))
    }

    /// The clusters that there is a file of, in the order of their names.
    fn names(&self) -> impl Iterator<Item = String> {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let name = |file: fs::DirEntry| Some(cluster_of(file.file_name().to_str()?)?.to_owned());
        let mut names: Vec<String> = files.filter_map(name).collect();
        names.sort();
        names.into_iter()
    }
}

const PREFIX: &str = "ambit.cluster-";
const SUFFIX: &str = ".jsonl";

fn cluster_of(file: &str) -> Option<&str> {
    file.strip_prefix(PREFIX)?.strip_suffix(SUFFIX).filter(|name| is_file_name(name))
}

/// Kubernetes takes no other letters in the key of a Secret.
fn is_file_name(cluster: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !cluster.is_empty() && cluster.len() <= MAX_NAME && cluster.bytes().all(plain)
}

/// Keeps the files in step with what is known, for ever.
pub(super) async fn keep(shared: Weak<Shared>, memory: Memory) {
    let mut kept: HashMap<Arc<str>, Kept> = HashMap::new();
    loop {
        sleep(EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        let read: Vec<_> = shared.clusters.borrow().read_ones().collect();
        kept.retain(|cluster, _| read.iter().any(|(read, _)| read == cluster));
        for (cluster, trust_domain) in read {
            let changes = shared.ledger().changes_of(&cluster);
            let now = Instant::now();
            let is_done = |kept: &Kept| kept.changes == Some(changes) || now < kept.again_at;
            if kept.get(&cluster).is_some_and(is_done) {
                continue;
            }
            // What has changed is in the world after this.
            let changes = shared.update(|ledger| ledger.changes_of(&cluster));
            let world = shared.world.load_full();
            let (memory, origin) = (memory.clone(), memory.origin(&cluster));
            let name = Arc::clone(&cluster);
            let written = spawn_blocking(move || memory.write(&name, &trust_domain, &world.mesh)).await;
            // The pool refuses only while the runtime ends.
            let Ok(written) = written else { return };
            // What has failed is tried again whether or not something changes.
            let changes = written.is_ok().then_some(changes);
            let rest =
                if changes.is_some() { (now.elapsed() * REST).min(LONGEST_REST) } else { AFTER_FAILURE };
            let problem = written.err().map(|error| {
                format!("what is known of cluster {cluster} is not kept over a restart of the agent: {error}")
            });
            shared.update(|ledger| ledger.set_source_problem(&origin, problem));
            kept.insert(cluster, Kept { changes, again_at: Instant::now() + rest });
        }
    }
}

/// How a cluster's file stands.
struct Kept {
    /// What was written; `None` if that failed.
    changes: Option<u64>,
    again_at: Instant,
}

/// Writes lines until they are as long as may be; whether that was all.
fn lines(
    out: &mut impl io::Write,
    header: &Header,
    changes: impl Iterator<Item = Change>,
    limit: u64,
) -> io::Result<bool> {
    let mut line = serde_json::to_vec(header)?;
    let (mut objects, mut length) = (0, 0);
    let mut whole = true;
    for object in changes.filter_map(|change| object::of(&change)) {
        length += line.len() as u64 + 1;
        let next = serde_json::to_vec(&object)?;
        // Room for the last line.
        if length + next.len() as u64 + 64 > limit {
            whole = false;
            break;
        }
        line.push(b'\n');
        out.write_all(&line)?;
        line = next;
        objects += 1;
    }
    line.push(b'\n');
    out.write_all(&line)?;
    serde_json::to_writer(&mut *out, &Footer { objects })?;
    out.write_all(b"\n").map(|()| whole)
}

/// What a file says, and what is bad in it.
fn read(
    cluster: &str,
    content: &[u8],
    settings: &Settings,
    local: &ClusterLocal,
) -> Result<(Remembered, Option<String>), String> {
    let mut lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate();
    let (_, first) = lines.next().ok_or("it is empty")?;
    let header: Header = serde_json::from_slice(first).map_err(|error| format!("line 1: {error}"))?;
    if (header.version, &*header.cluster) != (VERSION, cluster) {
        let Header { version, cluster, .. } = header;
        return Err(format!("it is of version {version} and cluster {cluster:?}, not of version {VERSION}"));
    }
    let trust_domain: TrustDomain =
        header.trust_domain.parse().map_err(|error| format!("line 1: {error}"))?;
    let settings = Settings { trust_domain: trust_domain.clone(), ..settings.clone() };
    let name: Arc<str> = cluster.into();
    let (mut entries, mut problem, mut whole) = (Vec::new(), None, false);
    for (at, line) in lines {
        match entry(line, &settings) {
            Ok(Line::Object(entry)) => entries.push(entry.in_cluster(&name, local)),
            Ok(Line::End(objects)) => whole = objects == entries.len(),
            Err(error) => drop(problem.get_or_insert(format!("line {}: {error}", at + 1))),
        }
    }
    let problem = problem.or_else(|| (!whole).then(|| "it ends before its end".to_owned()));
    let written = UNIX_EPOCH.checked_add(Duration::from_secs(header.written)).unwrap_or(UNIX_EPOCH);
    Ok((Remembered { cluster: name, trust_domain, written, entries }, problem))
}

enum Line {
    Object(Box<Entry>),
    End(usize),
}

fn entry(line: &[u8], settings: &Settings) -> Result<Line, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let kind = value.get("kind").and_then(Value::as_str);
    let Some(kind) = kind else {
        let footer = serde_json::from_value(value).map_err(|error| error.to_string());
        return footer.map(|Footer { objects }| Line::End(objects));
    };
    let row = remotes::watched().find(|row| row.name == kind);
    let kind: Kind = row.ok_or_else(|| format!("{kind:?} is not of another cluster"))?.kind;
    let entry = Entry::read(kind, &value, settings).map_err(|error| error.to_string())?;
    match &entry.problem {
        Some(problem) if !entry.stated.is_good() => Err(problem.to_string()),
        _ => Ok(Line::Object(Box::new(entry))),
    }
}

#[cfg(test)]
mod tests;
