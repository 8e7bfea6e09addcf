//! Which version of which object is in force, over all files, and the world that follows.
//!
//! Promises that trouble with a file or an object leaves in force what was, that of two claims to one name the first by
//! file name counts, and that the mesh hears only of what changed. Reading files is left to the folder.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use ambit_core::{
    discovery::{Change, Mesh, Settings},
    policy::Policies,
};
use tracing::{info, warn};

use super::{
    Problem, World,
    convert::FieldError,
    manifest::{Entry, Key, Kind, Manifest, Object},
    tree::Documents,
};

/// Objects in all files together.
const MAX_OBJECTS: usize = 200_000;
/// Problems that are told of one file; the rest are counted.
const MAX_PROBLEMS: usize = 100;

/// The state of one folder.
#[derive(Debug)]
pub(super) struct Ledger {
    settings: Settings,
    folder: PathBuf,
    folder_problem: Option<String>,
    files: BTreeMap<Arc<Path>, FileState>,
    objects: usize,
    in_force: HashMap<Key, InForce>,
    mesh: Mesh,
    policies: Policies,
    problems: Vec<Problem>,
}

#[derive(Debug, Default)]
struct FileState {
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

#[derive(Clone, Debug)]
struct InForce {
    file: Arc<Path>,
    object: Object,
}

impl Ledger {
    pub(super) fn new(folder: &Path, settings: Settings) -> Self {
        Self {
            mesh: Mesh::new(settings.clone()),
            policies: Policies::new(Arc::clone(&settings.root_namespace)),
            folder: folder.to_owned(),
            settings,
            folder_problem: None,
            files: BTreeMap::new(),
            objects: 0,
            in_force: HashMap::new(),
            problems: Vec::new(),
        }
    }

    /// The folder itself is in trouble, or no longer.
    pub(super) fn folder_problem(&mut self, problem: Option<String>) {
        self.folder_problem = problem;
    }

    /// A file has new content. A file that cannot be read to its end keeps what it held before; if it held nothing, the
    /// documents before the error count.
    pub(super) fn take(&mut self, file: &Path, documents: Documents) {
        let held = self.files.get(file).map_or(&[][..], |state| &state.entries);
        if !held.is_empty() {
            if let Some(error) = documents.error {
                return self.refuse(file, &error);
            }
            if documents.values.is_empty() {
                return self.refuse(file, "holds no document; remove the file to remove its objects");
            }
        }
        let mut manifest = Manifest::read(documents.values, &self.settings);
        if manifest.unidentified {
            let named: HashSet<&Key> = manifest.entries.iter().map(|entry| &entry.key).collect();
            let missing = held.iter().map(|entry| &entry.key).filter(|key| !named.contains(key));
            let kept: Vec<_> = missing.map(|key| Entry { key: key.clone(), object: None }).collect();
            manifest.entries.extend(kept);
        }
        let objects = self.objects - held.len() + manifest.entries.len();
        if objects > MAX_OBJECTS {
            return self.refuse(file, &format!("makes more than {MAX_OBJECTS} objects in the folder"));
        }
        self.objects = objects;
        let path: Arc<Path> = file.into();
        let complaints = manifest.complaints.into_iter();
        let mut problems: Vec<_> = complaints.map(|(object, error)| problem(file, object, error)).collect();
        problems.extend(documents.error.map(|error| problem(file, None, FieldError::new("", error))));
        self.files.insert(path, FileState { entries: manifest.entries, problems });
    }

    /// A file is there, but cannot be taken: what it held stays.
    pub(super) fn refuse(&mut self, file: &Path, message: &str) {
        let state = self.files.entry(file.into()).or_default();
        let stay = if state.entries.is_empty() { "" } else { " (what it held before stays in force)" };
        let error = FieldError::new("", message);
        let message = format!("{}{stay}", error.message);
        state.problems = vec![problem(file, None, FieldError { message, ..error })];
    }

    /// A file is gone, and its objects with it.
    pub(super) fn forget(&mut self, file: &Path) {
        if let Some(state) = self.files.remove(file) {
            self.objects -= state.entries.len();
        }
    }

    /// Brings the world up to date with the files; none if nothing changed.
    pub(super) fn settle(&mut self) -> Option<World> {
        let (in_force, problems) = self.weigh();
        let changed = self.enact(in_force);
        let told = problems != self.problems;
        if told {
            tell(&self.problems, &problems);
            self.problems = problems;
        }
        (changed || told).then(|| self.world())
    }

    /// The world as it was settled last.
    pub(super) fn world(&self) -> World {
        World {
            mesh: self.mesh.clone(),
            policies: self.policies.clone(),
            problems: self.problems.clone(),
            synced: true,
        }
    }

    /// Decides for every name which version is in force.
    fn weigh(&self) -> (HashMap<Key, InForce>, Vec<Problem>) {
        let mut in_force: HashMap<Key, InForce> = HashMap::with_capacity(self.in_force.len());
        let mut left_over = Vec::new();
        let folder = self.folder_problem.iter();
        let mut problems: Vec<Problem> =
            folder.map(|text| problem(&self.folder, None, FieldError::new("", text))).collect();
        for (file, state) in &self.files {
            let mut of_file = state.problems.clone();
            for Entry { key, object } in &state.entries {
                if let Some(first) = in_force.get(key) {
                    of_file.push(duplicate(file, &first.file, key));
                    continue;
                }
                let before = self.in_force.get(key);
                let version = match object {
                    Some(object) => Some(object),
                    None => before.filter(|before| before.file == *file).map(|before| &before.object),
                };
                match version {
                    Some(object) => {
                        let version = InForce { file: Arc::clone(file), object: object.clone() };
                        in_force.insert(key.clone(), version);
                    }
                    None => left_over.extend(before.map(|before| (key, file, before))),
                }
            }
            problems.extend(capped(file, of_file));
        }
        // An object that moved to another file and broke on the way.
        for (key, file, before) in left_over {
            let version = || InForce { file: Arc::clone(file), object: before.object.clone() };
            in_force.entry(key.clone()).or_insert_with(version);
        }
        (in_force, problems)
    }

    /// Tells mesh and policies what is different; whether anything was.
    fn enact(&mut self, in_force: HashMap<Key, InForce>) -> bool {
        let before = std::mem::take(&mut self.in_force);
        let mut changed = false;
        for key in before.keys().filter(|key| !in_force.contains_key(key)) {
            changed = true;
            self.remove(key);
        }
        for (key, version) in &in_force {
            if before.get(key).is_none_or(|before| before.object != version.object) {
                changed = true;
                self.upsert(&version.object);
            }
        }
        self.in_force = in_force;
        changed
    }

    fn upsert(&mut self, object: &Object) {
        self.mesh.apply(match object.clone() {
            Object::Namespace(namespace) => Change::Namespace(namespace),
            Object::Pod(pod) => Change::Pod(pod),
            Object::Service(service) => Change::Service(service),
            Object::EndpointSlice(slice) => Change::EndpointSlice(slice),
            Object::PeerAuthentication(policy) => return self.policies.upsert(policy),
        });
    }

    fn remove(&mut self, Key { kind, name }: &Key) {
        let name = name.clone();
        self.mesh.apply(match kind {
            Kind::Namespace => Change::NamespaceGone(name.name),
            Kind::Pod => Change::PodGone(name),
            Kind::Service => Change::ServiceGone(name),
            Kind::EndpointSlice => Change::EndpointSliceGone(name),
            Kind::PeerAuthentication => return self.policies.remove(&name),
        });
    }
}

fn problem(file: &Path, object: Option<String>, error: FieldError) -> Problem {
    Problem { file: file.to_owned(), object, field: error.field, message: error.message }
}

fn duplicate(file: &Path, first: &Path, key: &Key) -> Problem {
    let message = if file == first {
        "stands twice in this file; the first one is in force".to_owned()
    } else {
        format!("stands in {} too, which comes first and is in force", first.display())
    };
    Problem {
        file: file.to_owned(),
        object: Some(key.to_string()),
        field: Some("metadata.name".into()),
        message,
    }
}

fn capped(file: &Path, mut problems: Vec<Problem>) -> Vec<Problem> {
    if problems.len() > MAX_PROBLEMS {
        let more = format!("{} more problems in this file", problems.len() - MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        problems.push(problem(file, None, FieldError::new("", more)));
    }
    problems
}

/// Logs each problem once when it appears and once when it is gone.
fn tell(before: &[Problem], now: &[Problem]) {
    let known: HashSet<_> = before.iter().collect();
    let present: HashSet<_> = now.iter().collect();
    for Problem { file, object, field, message } in now.iter().filter(|problem| !known.contains(problem)) {
        warn!(file = %file.display(), object, field, "{message}");
    }
    for Problem { file, object, field, message } in before.iter().filter(|problem| !present.contains(problem))
    {
        info!(file = %file.display(), object, field, "no longer so: {message}");
    }
}

#[cfg(test)]
mod tests;
