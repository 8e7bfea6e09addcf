//! One map: its lock, how often it was asked or told something, and for some what it holds.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::maps::{HashMap, MapData, MapError};

/// How many system calls a map has taken.
#[derive(Debug, Default)]
pub(super) struct Operations(AtomicU64);

impl Operations {
    pub(super) fn add(&self, operations: usize) {
        self.0.fetch_add(operations as u64, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A map behind a lock that is held for a few system calls.
pub(super) struct Locked<M> {
    map: Mutex<M>,
    operations: Operations,
}

impl<M> Locked<M> {
    pub(super) fn new(map: M) -> Self {
        Self { map: Mutex::new(map), operations: Operations::default() }
    }

    /// Does what takes one system call.
    pub(super) fn once<R>(&self, operation: impl FnOnce(&mut M) -> R) -> R {
        self.several(|map, operations| {
            operations.add(1);
            operation(map)
        })
    }

    /// Does what takes some, which it has to count.
    pub(super) fn several<R>(&self, operate: impl FnOnce(&mut M, &Operations) -> R) -> R {
        // A map handle is a file descriptor; a panic elsewhere cannot leave it half changed.
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        operate(&mut map, &self.operations)
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations.count()
    }
}

/// A map that only the agent of the node writes, and what it holds. That is not known before the map has been read once:
/// an earlier agent may have left something.
pub(super) struct Held<K, V> {
    map: HashMap<MapData, K, V>,
    entries: Option<BTreeMap<K, V>>,
}

impl<K: aya::Pod + Ord, V: aya::Pod + PartialEq> Held<K, V> {
    pub(super) fn new(map: HashMap<MapData, K, V>) -> Self {
        Self { map, entries: None }
    }

    /// Whether what the map holds is known.
    pub(super) fn is_known(&self) -> bool {
        self.entries.is_some()
    }

    /// Another agent may have written.
    pub(super) fn forget(&mut self) {
        self.entries = None;
    }

    /// Makes the map hold what is `wanted` and nothing else: additions and changes first. Where that fails, what is not
    /// wanted is gone all the same.
    pub(super) fn become_equal(
        &mut self,
        wanted: BTreeMap<K, V>,
        operations: &Operations,
    ) -> Result<(), MapError> {
        let present = match self.entries.take() {
            Some(known) => known,
            None => {
                let present: BTreeMap<K, V> = self.map.iter().collect::<Result<_, _>>()?;
                // The next key, and its value.
                operations.add(1 + 2 * present.len());
                present
            }
        };
        // Of a map that is full by what is to go some may not fit yet; what is to go goes, whatever fits.
        let added = self.add(&wanted, &present, operations);
        for key in present.keys().filter(|key| !wanted.contains_key(key)) {
            operations.add(1);
            self.map.remove(key)?;
        }
        if added.is_err() {
            self.add(&wanted, &present, operations)?;
        }
        self.entries = Some(wanted);
        Ok(())
    }

    fn add(
        &mut self,
        wanted: &BTreeMap<K, V>,
        present: &BTreeMap<K, V>,
        operations: &Operations,
    ) -> Result<(), MapError> {
        for (key, value) in wanted.iter().filter(|(key, value)| present.get(key) != Some(value)) {
            operations.add(1);
            self.map.insert(key, value, 0)?;
        }
        Ok(())
    }

    /// Adds and removes single entries of a map whose content is known.
    pub(super) fn change(
        &mut self,
        added: impl Iterator<Item = (K, V)>,
        removed: impl Iterator<Item = K>,
        operations: &Operations,
    ) -> Result<(), MapError> {
        // After an error half way it is not.
        let Some(mut entries) = self.entries.take() else { return Ok(()) };
        for (key, value) in added {
            operations.add(1);
            self.map.insert(key, value, 0)?;
            entries.insert(key, value);
        }
        for key in removed {
            if entries.remove(&key).is_some() {
                operations.add(1);
                self.map.remove(&key)?;
            }
        }
        self.entries = Some(entries);
        Ok(())
    }
}
