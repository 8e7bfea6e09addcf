//! Where a pod's connections need not wait for an answer: the destination has just answered a row of others.
//!
//! The filter is told until when. One connection at a time to a server that comes and goes is always told the truth; it is
//! those of a busy pair that are spared the wait.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ambit_ebpf_common::{DestinationKey, addr};
use aya::maps::{HashMap as BpfHashMap, MapData, MapError};
use nix::libc;

/// The map's name.
pub(super) const MAP: &str = "ANSWERED";
/// How many answers in a row it takes.
const ROW: u32 = 8;
/// How long an answer counts, for the row and for those that need not wait.
const FRESH: Duration = Duration::from_secs(1);
/// Destinations of one pod that are followed at a time: as many as the filter's map has room for.
const DESTINATIONS: usize = 1024;

/// Who answers one pod.
pub(in crate::capture) struct Answered(Mutex<State>);

struct State {
    map: BpfHashMap<MapData, DestinationKey, u64>,
    rows: HashMap<SocketAddr, Row>,
}

/// Answers of one destination, each no later than [`FRESH`] after the one before.
struct Row {
    answers: u32,
    last: Instant,
    /// When the filter was told.
    told: Option<Instant>,
}

impl Answered {
    pub(super) fn new(map: BpfHashMap<MapData, DestinationKey, u64>) -> Self {
        Self(Mutex::new(State { map, rows: HashMap::new() }))
    }

    /// A connection to `destination` came about.
    pub(in crate::capture) fn yes(&self, destination: SocketAddr) {
        let now = Instant::now();
        // Each critical section is a step of the map: a panic cannot leave it half changed.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State { map, rows } = &mut *state;
        if rows.len() >= DESTINATIONS && !rows.contains_key(&destination) {
            for (gone, _) in rows.extract_if(|_, row| now - row.last > FRESH) {
                let _: Result<(), MapError> = map.remove(&key(gone));
            }
            if rows.len() >= DESTINATIONS {
                return;
            }
        }
        let row = rows.entry(destination).or_insert(Row { answers: 0, last: now, told: None });
        row.answers = if now - row.last > FRESH { 1 } else { row.answers.saturating_add(1) };
        row.last = now;
        if row.answers >= ROW && row.told.is_none_or(|told| now - told > FRESH / 2) {
            let until = monotonic().saturating_add(FRESH.as_nanos() as u64);
            // Without room the next ones wait.
            let _: Result<(), MapError> = map.insert(key(destination), until, 0);
            row.told = Some(now);
        }
    }

    /// One did not.
    pub(in crate::capture) fn no(&self, destination: SocketAddr) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.rows.remove(&destination).is_some_and(|row| row.told.is_some()) {
            let _: Result<(), MapError> = state.map.remove(&key(destination));
        }
    }
}

fn key(destination: SocketAddr) -> DestinationKey {
    DestinationKey { addr: addr(destination.ip()), port: u32::from(destination.port()) }
}

/// The clock of `bpf_ktime_get_ns`, in nanoseconds.
fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    (now.tv_sec as u64).saturating_mul(1_000_000_000) + now.tv_nsec as u64
}
