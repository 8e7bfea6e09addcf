//! Which version of which object is in force, over all origins in a source, and the world that follows.
//!
//! Promises that a problem with an origin or an object never widens access: what was in force stays, where policies may be
//! missing no plaintext is taken, and nobody is let in where they may have been in force before the agent started. Of two claims to one
//! name the first by origin counts, and a change costs what it changes.
//! Reading files and watching servers are left to the sources.

mod cni_addresses;
mod problems;
mod settling;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ambit_core::{
    discovery::{Delta, Mesh, Settings},
    model::ObjectName,
    policy::{PolicySet, Reach},
};

use super::{
    Origin, Problem, World,
    kinds::{Change, Entry, FieldError, Key, Kind, Stated},
};
use cni_addresses::CniAddresses;

/// Objects of all origins together.
const MAX_OBJECTS: usize = 200_000;

/// The state of one source.
#[derive(Debug)]
pub(super) struct Ledger {
    /// What is wrong with the source itself, or with a part of it.
    source_problems: BTreeMap<Origin, String>,
    origins: BTreeMap<Origin, Content>,
    objects: usize,
    /// How many objects there are of other clusters: what these have takes no room from what this one has.
    elsewhere: BTreeMap<Arc<str>, usize>,
    /// How often something of another cluster has changed.
    changes_elsewhere: BTreeMap<Arc<str>, u64>,
    /// Clusters that have had more objects than are kept.
    crowded: BTreeSet<Arc<str>>,
    /// Every claim to every name, in the order of precedence.
    claims: HashMap<Key, Vec<Claim>>,
    in_force: HashMap<Key, InForce>,
    cni_addresses: CniAddresses,
    mesh: Mesh,
    policies: PolicySet,
    /// What changes since it was last taken may concern.
    news: News,
    /// Names whose claims have changed since they were settled.
    stale: BTreeSet<Key>,
    /// Names that are claimed more than once.
    contested: BTreeSet<Key>,
    /// Origins that may hold policies of which nothing is known.
    doubtful: BTreeSet<Origin>,
    /// Those that were so before the source was read to its end: what they hold may have been in force before.
    doubtful_from_start: BTreeSet<Origin>,
    /// Kinds of which the API has had more objects than are kept. Which those are is not known, so this stays.
    beyond_bounds: BTreeSet<Kind>,
    /// Origins with problems of their own.
    with_problems: BTreeSet<Origin>,
    problems: Vec<Problem>,
    synced: bool,
    /// Something that the world shows has changed since it was settled.
    changed: bool,
}

/// What differs in a new world.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Captured destinations and pods.
    pub(super) delta: Delta,
    /// The workloads that changed policies may concern.
    pub(super) reach: Reach,
}

/// What an origin holds.
#[derive(Debug, Default)]
struct Content {
    /// What brings each object into force.
    objects: Vec<(Key, Stated)>,
    problems: Vec<Problem>,
}

/// An origin, and the position there.
type Claim = (Origin, usize);

#[derive(Debug)]
struct InForce {
    /// The claim that is in force; an invalid one if the name has no valid one.
    claim: Claim,
    change: Change,
    /// It never was good: this is what could be read of it.
    guessed: bool,
}

impl Ledger {
    /// The ledger of a source that has not been read.
    pub(super) fn new(settings: Settings) -> Self {
        let mut policies = PolicySet::new(Arc::clone(&settings.root_namespace));
        policies.set_providers(settings.providers.iter().cloned());
        policies.set_paths(settings.path_normalization);
        Self {
            policies,
            mesh: Mesh::new(settings),
            source_problems: BTreeMap::new(),
            origins: BTreeMap::new(),
            objects: 0,
            elsewhere: BTreeMap::new(),
            changes_elsewhere: BTreeMap::new(),
            crowded: BTreeSet::new(),
            claims: HashMap::new(),
            in_force: HashMap::new(),
            cni_addresses: CniAddresses::default(),
            news: News::default(),
            stale: BTreeSet::new(),
            contested: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            doubtful_from_start: BTreeSet::new(),
            beyond_bounds: BTreeSet::new(),
            with_problems: BTreeSet::new(),
            problems: Vec::new(),
            synced: false,
            changed: false,
        }
    }

    /// The source has been read to its end once.
    pub(super) fn complete(&mut self) {
        self.changed |= !self.synced;
        self.synced = true;
    }

    /// What is wrong now with the source itself, or with the part of it at `origin`.
    pub(super) fn set_source_problem(&mut self, origin: &Origin, problem: Option<String>) {
        match problem {
            Some(problem) => self.source_problems.insert(origin.clone(), problem),
            None => self.source_problems.remove(origin),
        };
    }

    /// The objects that an origin holds, valid or not.
    pub(super) fn keys_at(&self, origin: &Origin) -> impl Iterator<Item = &Key> {
        self.origins.get(origin).into_iter().flat_map(|content| content.objects.iter().map(|(key, _)| key))
    }

    /// Where the version of each object stands that is in force.
    pub(super) fn places(&self) -> impl Iterator<Item = (&Key, &Origin)> {
        self.in_force.iter().map(|(key, in_force)| (key, &in_force.claim.0))
    }

    /// An origin holds these objects now; `problems` are those that belong to none of them.
    pub(super) fn take(&mut self, origin: &Origin, entries: Vec<Entry>, problems: Vec<Problem>) {
        let mut content = Content { objects: Vec::with_capacity(entries.len()), problems: Vec::new() };
        for Entry { key, stated, problem, .. } in entries {
            let notice = stated.is_good();
            let named = |error| Problem { notice, ..Problem::new(origin, Some(key.to_string()), error) };
            content.problems.extend(problem.map(named));
            content.objects.push((key, stated));
        }
        content.problems.extend(problems);

        let held = self.origins.get(origin);
        if held.is_some_and(|held| held.objects == content.objects && held.problems == content.problems) {
            return;
        }
        let (held, coming) = (held.map_or(0, |held| held.objects.len()), content.objects.len());
        let cluster = origin.cluster();
        let all: usize = if cluster.is_some() { self.elsewhere.values().sum() } else { self.objects };
        if all - held + coming > MAX_OBJECTS {
            return self.refuse_beyond_bounds(origin);
        }
        self.forget(origin);
        match cluster {
            Some(cluster) => {
                *self.elsewhere.entry(Arc::clone(cluster)).or_default() += coming;
                self.count_change(cluster);
            }
            None => self.objects += coming,
        }
        for (at, (key, _)) in content.objects.iter().enumerate() {
            let claims = self.claims.entry(key.clone()).or_insert_with(|| Vec::with_capacity(1));
            let claim = (origin.clone(), at);
            claims.insert(claims.partition_point(|other| *other < claim), claim);
            self.stale.insert(key.clone());
        }
        if !content.problems.is_empty() {
            self.with_problems.insert(origin.clone());
        }
        self.origins.insert(origin.clone(), content);
    }

    /// Takes note of an origin whose objects are too many. Of the API the kind alone is remembered: a list of what is not kept
    /// would have no bound either.
    fn refuse_beyond_bounds(&mut self, origin: &Origin) {
        match (origin, origin.cluster()) {
            (_, Some(cluster)) => {
                self.crowded.insert(Arc::clone(cluster));
            }
            (Origin::Object(key), None) if !self.origins.contains_key(origin) => {
                self.beyond_bounds.insert(key.kind);
            }
            _ => self.refuse(origin, &format!("makes more than {MAX_OBJECTS} objects")),
        }
    }

    /// Whether an origin may hold policies of which nothing is known.
    pub(super) fn is_doubtful(&self, origin: &Origin) -> bool {
        self.doubtful.contains(origin)
    }

    /// Whether an origin may hold policies of which nothing is known. As long as one may, no plaintext is taken.
    pub(super) fn set_doubtful(&mut self, origin: &Origin, doubtful: bool) {
        if doubtful {
            self.doubtful.insert(origin.clone());
            if !self.synced {
                self.doubtful_from_start.insert(origin.clone());
            }
        } else {
            self.doubtful.remove(origin);
        }
    }

    /// Something is at an origin, but cannot be taken: what it held before stays. If it held nothing, it may hold a policy.
    pub(super) fn refuse(&mut self, origin: &Origin, message: &str) {
        let content = self.origins.entry(origin.clone()).or_default();
        let unknown = content.objects.is_empty();
        let stay = if content.objects.is_empty() { "" } else { " (what it held before stays in force)" };
        let error = FieldError::new("", message);
        let message = format!("{}{stay}", error.message);
        content.problems = vec![Problem::new(origin, None, FieldError { message, ..error })];
        self.with_problems.insert(origin.clone());
        if unknown {
            self.set_doubtful(origin, true);
        }
    }

    /// An origin is gone, and its objects with it.
    pub(super) fn forget(&mut self, origin: &Origin) {
        self.doubtful.remove(origin);
        let Some(content) = self.origins.remove(origin) else { return };
        self.with_problems.remove(origin);
        match origin.cluster() {
            Some(cluster) => {
                if let Some(objects) = self.elsewhere.get_mut(cluster) {
                    *objects -= content.objects.len();
                }
                self.count_change(cluster);
            }
            None => self.objects -= content.objects.len(),
        }
        for (key, _) in content.objects {
            if let Some(claims) = self.claims.get_mut(&key) {
                claims.retain(|(other, _)| other != origin);
                if claims.is_empty() {
                    self.claims.remove(&key);
                }
            }
            self.stale.insert(key);
        }
    }

    /// How many objects of another cluster are known.
    pub(super) fn objects_of(&self, cluster: &str) -> usize {
        self.elsewhere.get(cluster).copied().unwrap_or_default()
    }

    /// A number that is another one whenever something of another cluster has changed.
    pub(super) fn changes_of(&self, cluster: &str) -> u64 {
        self.changes_elsewhere.get(cluster).copied().unwrap_or_default()
    }

    fn count_change(&mut self, cluster: &Arc<str>) {
        *self.changes_elsewhere.entry(Arc::clone(cluster)).or_default() += 1;
    }

    /// Another cluster is none of ours any more: its objects go.
    pub(super) fn forget_cluster(&mut self, cluster: &Arc<str>) {
        let of_cluster = |origin: &&Origin| origin.cluster() == Some(cluster);
        let gone: Vec<Origin> = self.origins.keys().filter(of_cluster).cloned().collect();
        gone.iter().for_each(|origin| self.forget(origin));
        self.elsewhere.remove(cluster);
        self.crowded.remove(cluster);
    }

    /// Forgets every object of this kind in the API of this cluster, or of another one if that is named, that is not among those
    /// `present`.
    pub(super) fn retain(&mut self, kind: Kind, cluster: Option<&Arc<str>>, present: &HashSet<ObjectName>) {
        let start = Origin::Object(Key { kind, name: ObjectName::new("", "") });
        let origins = self.origins.range(start..).map(|(origin, _)| origin);
        let gone: Vec<Origin> = origins
            .take_while(|origin| matches!(origin, Origin::Object(key) if key.kind == kind))
            .filter(|origin| origin.cluster() == cluster)
            .filter(|origin| !matches!(origin, Origin::Object(key) if present.contains(&key.name)))
            .cloned()
            .collect();
        gone.iter().for_each(|origin| self.forget(origin));
    }

    /// What differs in the settled world from the one this was last asked for.
    pub(super) fn news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// The world as it was settled last.
    pub(super) fn world(&self) -> World {
        World {
            mesh: self.mesh.clone(),
            policies: self.policies.clone(),
            problems: self.problems.clone(),
            synced: self.synced,
        }
    }
}

#[cfg(test)]
mod tests;
