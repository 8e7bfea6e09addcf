//! Which version of which object is in force, over all places of a source, and the world that follows.
//!
//! Promises that trouble with a place or an object leaves in force what was, that of two claims to one name the first by
//! place counts, and that a change costs what it changes. Reading files and watching servers are left to the sources.

mod place;
mod placed;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use ambit_core::{
    discovery::{Change, Delta, Mesh, Settings},
    model::ObjectName,
    policy::{PolicySet, Reach},
};
use tracing::{info, warn};

pub(crate) use place::Place;

use super::{
    Problem, World,
    convert::FieldError,
    manifest::{Entry, Key, Kind, Manifest, Object},
    said::{PodMark, PolicyStatus, Said},
    tree::Documents,
};
use placed::Placed;

/// Objects at all places together.
const MAX_OBJECTS: usize = 200_000;
/// Problems that are told of one place; the rest are counted.
const MAX_PROBLEMS: usize = 100;
/// Problems that are told of one source; the rest are counted.
const MAX_TOLD: usize = 2_000;

/// The state of one source.
#[derive(Debug)]
pub(super) struct Ledger {
    settings: Settings,
    said: Said,
    /// What is wrong with the source itself, or with a part of it.
    trouble: BTreeMap<Place, String>,
    places: BTreeMap<Place, Content>,
    objects: usize,
    /// Every entry of every name, in the order of precedence: place and position there.
    claims: HashMap<Key, Vec<(Place, usize)>>,
    in_force: HashMap<Key, InForce>,
    placed: Placed,
    mesh: Mesh,
    policies: PolicySet,
    /// What changes since it was last taken may concern.
    news: News,
    /// Names whose claims have changed since they were settled.
    stale: BTreeSet<Key>,
    /// Names that are claimed more than once.
    contested: BTreeSet<Key>,
    /// Places with problems of their own.
    troubled: BTreeSet<Place>,
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

#[derive(Debug, Default)]
struct Content {
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

#[derive(Debug)]
struct InForce {
    /// The claim that is in force; a broken one if the name has no good one.
    claim: (Place, usize),
    object: Object,
}

impl Ledger {
    /// The ledger of a source that has not been read.
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            mesh: Mesh::new(settings.clone()),
            policies: PolicySet::new(Arc::clone(&settings.root_namespace)),
            settings,
            said: Said::default(),
            trouble: BTreeMap::new(),
            places: BTreeMap::new(),
            objects: 0,
            claims: HashMap::new(),
            in_force: HashMap::new(),
            placed: Placed::default(),
            news: News::default(),
            stale: BTreeSet::new(),
            contested: BTreeSet::new(),
            troubled: BTreeSet::new(),
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

    /// The source itself, or the part of it at `place`, is in trouble, or no longer.
    pub(super) fn trouble(&mut self, place: &Place, problem: Option<String>) {
        match problem {
            Some(problem) => self.trouble.insert(place.clone(), problem),
            None => self.trouble.remove(place),
        };
    }

    /// A file has new content. A file that cannot be read to its end keeps what it held before; if it held nothing, the
    /// documents before the error count.
    pub(super) fn take_file(&mut self, place: &Place, documents: Documents) {
        if self.places.get(place).is_some_and(|content| !content.entries.is_empty()) {
            if let Some(error) = documents.error {
                return self.refuse(place, &error);
            }
            if documents.values.is_empty() {
                return self.refuse(place, "holds no document; remove the file to remove its objects");
            }
        }
        let manifest = Manifest::read(documents.values, &self.settings);
        self.take(place, manifest, documents.error);
    }

    /// A place has new content, and perhaps an error that goes for the whole of it.
    pub(super) fn take(&mut self, place: &Place, mut manifest: Manifest, error: Option<String>) {
        let held = self.places.get(place).map_or(&[][..], |content| &content.entries);
        if manifest.unidentified {
            let named: HashSet<&Key> = manifest.entries.iter().map(|entry| &entry.key).collect();
            let missing = held.iter().map(|entry| &entry.key).filter(|key| !named.contains(key));
            let kept: Vec<_> = missing.map(|key| Entry { key: key.clone(), object: None }).collect();
            manifest.entries.extend(kept);
        }
        let objects = self.objects - held.len() + manifest.entries.len();
        if objects > MAX_OBJECTS {
            return self.refuse(place, &format!("makes more than {MAX_OBJECTS} objects"));
        }
        self.withdraw(place);
        self.objects = objects;
        for (at, entry) in manifest.entries.iter().enumerate() {
            let claims = self.claims.entry(entry.key.clone()).or_default();
            let claim = (place.clone(), at);
            claims.insert(claims.partition_point(|other| *other < claim), claim);
            self.stale.insert(entry.key.clone());
        }
        let complaints = manifest.complaints.into_iter();
        let mut problems: Vec<_> = complaints.map(|(object, error)| problem(place, object, error)).collect();
        problems.extend(error.map(|error| problem(place, None, FieldError::new("", error))));
        if !problems.is_empty() {
            self.troubled.insert(place.clone());
        }
        self.places.insert(place.clone(), Content { entries: manifest.entries, problems });
    }

    /// Something is at a place, but cannot be taken: what was there before stays.
    pub(super) fn refuse(&mut self, place: &Place, message: &str) {
        let content = self.places.entry(place.clone()).or_default();
        let stay = if content.entries.is_empty() { "" } else { " (what it held before stays in force)" };
        let error = FieldError::new("", message);
        let message = format!("{}{stay}", error.message);
        content.problems = vec![problem(place, None, FieldError { message, ..error })];
        self.troubled.insert(place.clone());
    }

    /// A place is gone, and its objects with it.
    pub(super) fn forget(&mut self, place: &Place) {
        for Key { kind, .. } in self.withdraw(place) {
            match kind {
                Kind::Pod => self.mark(place, None),
                Kind::PeerAuthentication => self.unsaid(place, None),
                _ => {}
            }
        }
    }

    /// Takes back what a place says; the names it spoke of.
    fn withdraw(&mut self, place: &Place) -> Vec<Key> {
        let Some(content) = self.places.remove(place) else { return Vec::new() };
        self.troubled.remove(place);
        self.objects -= content.entries.len();
        for Entry { key, .. } in &content.entries {
            if let Some(claims) = self.claims.get_mut(key) {
                claims.retain(|(other, _)| other != place);
                if claims.is_empty() {
                    self.claims.remove(key);
                }
            }
            self.stale.insert(key.clone());
        }
        content.entries.into_iter().map(|entry| entry.key).collect()
    }

    /// What the pod at a place bears of ours, if anything.
    pub(super) fn mark(&mut self, place: &Place, mark: Option<PodMark>) {
        let Place::Object(_, name) = place else { return };
        if self.said.pods.get(name) == mark.as_ref() {
            return;
        }
        let pods = Arc::make_mut(&mut self.said.pods);
        match mark {
            Some(mark) => pods.insert(name.clone(), mark),
            None => pods.remove(name),
        };
        self.changed = true;
    }

    /// The status of the policy at a place should say this, or says what it should.
    pub(super) fn unsaid(&mut self, place: &Place, status: Option<PolicyStatus>) {
        let Place::Object(_, name) = place else { return };
        if self.said.policies.get(name) == status.as_ref() {
            return;
        }
        let policies = Arc::make_mut(&mut self.said.policies);
        match status {
            Some(status) => policies.insert(name.clone(), status),
            None => policies.remove(name),
        };
        self.changed = true;
    }

    /// Forgets every object of an API resource that is not among those `present`.
    pub(super) fn retain(&mut self, resource: &'static str, present: &HashSet<ObjectName>) {
        let start = Place::Object(resource, ObjectName::new("", ""));
        let of_resource = self.places.range(start..).map(|(place, _)| place);
        let gone: Vec<Place> = of_resource
            .take_while(|place| matches!(place, Place::Object(other, _) if *other == resource))
            .filter(|place| !matches!(place, Place::Object(_, name) if present.contains(name)))
            .cloned()
            .collect();
        gone.iter().for_each(|place| self.forget(place));
    }

    /// The node's CNI gave addresses to a pod.
    pub(super) fn place(&mut self, uid: &str, ips: &[IpAddr], now: Instant) {
        let known = self.mesh.pod_by_uid(uid).map(|pod| Key { kind: Kind::Pod, name: pod.name.clone() });
        let object = known.and_then(|key| self.in_force.get(&key)).map(|version| version.object.clone());
        let before = match &object {
            Some(Object::Pod(pod)) => pod.ips.clone(),
            _ => Vec::new(),
        };
        self.placed.insert(uid, ips, before, now);
        if let Some(object) = object {
            self.upsert(object);
        }
    }

    /// Brings the world up to date with the places; none if nothing changed.
    pub(super) fn settle(&mut self) -> Option<World> {
        for key in std::mem::take(&mut self.stale) {
            self.settle_name(key);
        }
        let problems = self.told();
        let news = problems != self.problems;
        if news {
            tell(&self.problems, &problems);
            self.problems = problems;
            self.changed = true;
        }
        // Nobody acts on half a world, and a copy of it for every object would be what a start takes longest for.
        if !self.synced && !news {
            return None;
        }
        std::mem::take(&mut self.changed).then(|| self.world())
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
            said: self.said.clone(),
            synced: self.synced,
        }
    }

    /// Decides which version of a name is in force, and tells mesh and policies if that is another one.
    fn settle_name(&mut self, key: Key) {
        let before = self.in_force.remove(&key);
        let claims = self.claims.get(&key).map_or(&[][..], Vec::as_slice);
        if claims.len() > 1 {
            self.contested.insert(key.clone());
        } else {
            self.contested.remove(&key);
        }
        let good = claims.iter().find_map(|claim| {
            let said = self.places.get(&claim.0)?.entries.get(claim.1)?.object.as_ref();
            let held = || Some(&before.as_ref().filter(|before| before.claim.0 == claim.0)?.object);
            Some((claim, said.or_else(held)?))
        });
        // An object that moved to another place and broke on the way.
        let moved = || Some((claims.first()?, &before.as_ref()?.object));
        let now = good
            .or_else(moved)
            .map(|(claim, object)| InForce { claim: claim.clone(), object: object.clone() });
        if let Some(Object::Pod(old)) = before.as_ref().map(|before| &before.object)
            && !matches!(now.as_ref().map(|now| &now.object), Some(Object::Pod(new)) if new.uid == old.uid)
        {
            self.placed.forget(&old.uid);
        }
        match now {
            Some(now) => {
                if before.is_none_or(|before| before.object != now.object) {
                    self.upsert(now.object.clone());
                }
                self.in_force.insert(key, now);
            }
            None if before.is_some() => self.remove(&key),
            None => {}
        }
    }

    fn upsert(&mut self, object: Object) {
        self.changed = true;
        let delta = self.mesh.apply(match object {
            Object::Namespace(namespace) => Change::Namespace(namespace),
            Object::Pod(pod) => Change::Pod(self.placed.complete(pod)),
            Object::Service(service) => Change::Service(service),
            Object::EndpointSlice(slice) => Change::EndpointSlice(slice),
            Object::PeerAuthentication(policy) => {
                self.news.reach.merge(self.policies.upsert(policy));
                return;
            }
        });
        self.news.delta.merge(delta);
    }

    fn remove(&mut self, Key { kind, name }: &Key) {
        self.changed = true;
        let name = name.clone();
        let delta = self.mesh.apply(match kind {
            Kind::Namespace => Change::NamespaceGone(name.name),
            Kind::Pod => Change::PodGone(name),
            Kind::Service => Change::ServiceGone(name),
            Kind::EndpointSlice => Change::EndpointSliceGone(name),
            Kind::PeerAuthentication => {
                self.news.reach.merge(self.policies.remove(&name));
                return;
            }
        });
        self.news.delta.merge(delta);
    }

    /// What is wrong now: the source first, then place by place.
    fn told(&self) -> Vec<Problem> {
        let trouble = self.trouble.iter();
        let mut problems: Vec<Problem> =
            trouble.map(|(place, text)| problem(place, None, FieldError::new("", text))).collect();
        let mut doubles: BTreeMap<&Place, BTreeMap<usize, Problem>> =
            self.troubled.iter().map(|place| (place, BTreeMap::new())).collect();
        for key in &self.contested {
            let Some(InForce { claim: first, .. }) = self.in_force.get(key) else { continue };
            for claim in self.claims.get(key).into_iter().flatten().filter(|claim| *claim > first) {
                doubles.entry(&claim.0).or_default().insert(claim.1, duplicate(&claim.0, &first.0, key));
            }
        }
        for (place, doubles) in doubles {
            let own = self.places.get(place).map_or(&[][..], |content| &content.problems);
            let of_place: Vec<Problem> = own.iter().cloned().chain(doubles.into_values()).collect();
            problems.extend(capped(place, of_place, MAX_PROBLEMS));
        }
        match problems.first().map(|problem| problem.place.clone()) {
            Some(place) => capped(&place, problems, MAX_TOLD),
            None => problems,
        }
    }
}

fn problem(place: &Place, object: Option<String>, error: FieldError) -> Problem {
    Problem { place: place.clone(), object, field: error.field, message: error.message }
}

fn duplicate(place: &Place, first: &Place, key: &Key) -> Problem {
    let message = if place == first {
        "stands twice in this file; the first one is in force".to_owned()
    } else {
        format!("stands in {first} too, which comes first and is in force")
    };
    let error = FieldError { field: Some("metadata.name".into()), message };
    problem(place, Some(key.to_string()), error)
}

fn capped(place: &Place, mut problems: Vec<Problem>, most: usize) -> Vec<Problem> {
    if problems.len() > most {
        let more = format!(
            "{} more problems in this {}",
            problems.len() - most,
            if most == MAX_TOLD { "source" } else { "file" }
        );
        problems.truncate(most);
        problems.push(problem(place, None, FieldError::new("", more)));
    }
    problems
}

/// Logs each problem once when it appears and once when it is gone.
fn tell(before: &[Problem], now: &[Problem]) {
    let known: HashSet<_> = before.iter().collect();
    let present: HashSet<_> = now.iter().collect();
    for Problem { place, object, field, message } in now.iter().filter(|problem| !known.contains(problem)) {
        warn!(%place, object, field, "{message}");
    }
    for Problem { place, object, field, message } in
        before.iter().filter(|problem| !present.contains(problem))
    {
        info!(%place, object, field, "no longer so: {message}");
    }
}

#[cfg(test)]
mod tests;
