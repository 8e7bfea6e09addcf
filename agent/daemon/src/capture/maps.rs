//! The agent's side of the maps that it shares with the programs. Each operation is one system call or a few; locks are
//! held for no longer.

use std::{
    collections::HashSet,
    fmt,
    net::IpAddr,
    os::fd::AsRawFd,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ambit_ebpf_common::{
    Addr, Counters, FAMILY_V4, FAMILY_V6, Flow, ListenerKey, Origin, OriginKey, Pod, Socket, addr,
};
use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues, SkStorage, SockHash},
};

use super::{CaptureError, pod::PodNet};

/// The maps by name; each is pinned.
pub(super) const NAMES: [&str; 7] =
    ["PODS", "DESTINATIONS", "SOCKETS", "ORIGINS", "BYPASS", "LISTENERS", "COUNTERS"];

/// The agent's side of the maps. The locks are held for one system call each.
pub(super) struct Maps {
    pods: Mutex<HashMap<MapData, u64, Pod>>,
    destinations: Mutex<HashMap<MapData, Addr, u32>>,
    sockets: Mutex<SkStorage<MapData, Socket>>,
    origins: HashMap<MapData, OriginKey, Origin>,
    bypass: Mutex<HashMap<MapData, Flow, u32>>,
    listeners: Mutex<SockHash<MapData, ListenerKey>>,
    counters: Mutex<PerCpuHashMap<MapData, u64, Counters>>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
        fn map<T: TryFrom<Map, Error = MapError>>(
            ebpf: &mut Ebpf,
            name: &'static str,
        ) -> Result<T, CaptureError> {
            let map = ebpf.take_map(name).ok_or(CaptureError::NoPrograms)?;
            T::try_from(map).map_err(|source| CaptureError::Map { map: name, source })
        }
        Ok(Self {
            pods: Mutex::new(map(ebpf, "PODS")?),
            destinations: Mutex::new(map(ebpf, "DESTINATIONS")?),
            sockets: Mutex::new(map(ebpf, "SOCKETS")?),
            origins: map(ebpf, "ORIGINS")?,
            bypass: Mutex::new(map(ebpf, "BYPASS")?),
            listeners: Mutex::new(map(ebpf, "LISTENERS")?),
            counters: Mutex::new(map(ebpf, "COUNTERS")?),
        })
    }

    /// Tells the programs that `socket` is the agent's own. The mark lives and dies with the socket.
    pub(super) fn mark(&self, socket: &impl AsRawFd, state: Socket) -> Result<(), MapError> {
        lock(&self.sockets).insert(socket, state, 0)
    }

    pub(super) fn origin(&self, key: &OriginKey) -> Option<Origin> {
        self.origins.get(key, 0).ok()
    }

    /// Ends the exemption of a dial that has connected.
    pub(super) fn forget_bypass(&self, flow: &Flow) {
        let _: Result<(), MapError> = lock(&self.bypass).remove(flow);
    }

    /// What a dead agent's dials left: nothing of this agent's is in the map yet.
    pub(super) fn clear_bypass(&self) {
        let mut bypass = lock(&self.bypass);
        let stale: Vec<Flow> = bypass.keys().filter_map(Result::ok).collect();
        for flow in stale {
            let _: Result<(), MapError> = bypass.remove(&flow);
        }
    }

    /// Makes `destinations` the captured ones: additions first.
    pub(super) fn set_destinations(&self, destinations: &HashSet<IpAddr>) -> Result<(), CaptureError> {
        let wanted: HashSet<Addr> = destinations.iter().map(|ip| addr(*ip)).collect();
        let mut map = lock(&self.destinations);
        let present: HashSet<Addr> = map.keys().collect::<Result<_, _>>().map_err(failed("DESTINATIONS"))?;
        for new in wanted.difference(&present) {
            map.insert(new, 1, 0).map_err(failed("DESTINATIONS"))?;
        }
        for old in present.difference(&wanted) {
            map.remove(old).map_err(failed("DESTINATIONS"))?;
        }
        Ok(())
    }

    /// Puts a pod's listeners where the inbound hook finds them, and its counters where all programs do.
    pub(super) fn add_listeners(&self, pod: &PodNet) -> Result<(), CaptureError> {
        let cookie = pod.cookie();
        let mut counters = lock(&self.counters);
        if counters.get(&cookie, 0).is_err() {
            let cpus = aya::util::nr_cpus().map_err(|(_, source)| CaptureError::Host {
                step: "count the CPUs in",
                path: "/sys/devices/system/cpu".into(),
                source,
            })?;
            PerCpuValues::try_from(vec![Counters::default(); cpus])
                .map_err(MapError::from)
                .and_then(|zeros| counters.insert(cookie, zeros, 0))
                .map_err(failed("COUNTERS"))?;
        }
        drop(counters);
        for (v6, fd) in pod.listener_fds() {
            lock(&self.listeners).insert(listener_key(cookie, v6), Fd(fd), 0).map_err(failed("LISTENERS"))?;
        }
        Ok(())
    }

    /// Has the pod's connects captured.
    pub(super) fn add_pod(&self, pod: &PodNet) -> Result<(), CaptureError> {
        lock(&self.pods).insert(pod.cookie(), pod.entry(), 0).map_err(failed("PODS"))
    }

    /// Has connects in the network namespace `cookie` left alone. It may not have been in the map.
    pub(super) fn remove_pod(&self, cookie: u64) {
        let _: Result<(), MapError> = lock(&self.pods).remove(&cookie);
    }

    /// Removes what [`Self::add_listeners`] added.
    pub(super) fn remove_listeners(&self, pod: &PodNet) {
        let cookie = pod.cookie();
        for (v6, _) in pod.listener_fds() {
            let _: Result<(), MapError> = lock(&self.listeners).remove(&listener_key(cookie, v6));
        }
        let _: Result<(), MapError> = lock(&self.counters).remove(&cookie);
    }

    /// What the programs did in the network namespace `cookie`, over all CPUs.
    pub(super) fn counters(&self, cookie: u64) -> Counters {
        let Ok(values) = lock(&self.counters).get(&cookie, 0) else {
            return Counters::default();
        };
        values.iter().fold(Counters::default(), |sum, cpu| Counters {
            captured: sum.captured + cpu.captured,
            passed: sum.passed + cpu.passed,
            received: sum.received + cpu.received,
            bypassed: sum.bypassed + cpu.bypassed,
            refused: sum.refused + cpu.refused,
        })
    }
}

/// Has connects in the network namespace `cookie` left alone, by the maps that an earlier agent pinned in `dir`.
pub(super) fn remove_pinned_pod(dir: &Path, cookie: u64) {
    let Ok(map) = MapData::from_pin(dir.join("PODS")) else {
        return;
    };
    if let Ok(mut pods) = HashMap::<_, u64, Pod>::try_from(Map::HashMap(map)) {
        let _: Result<(), MapError> = pods.remove(&cookie);
    }
}

fn failed(map: &'static str) -> impl Fn(MapError) -> CaptureError {
    move |source| CaptureError::Map { map, source }
}

fn listener_key(netns: u64, v6: bool) -> ListenerKey {
    ListenerKey { netns, family: if v6 { FAMILY_V6 } else { FAMILY_V4 }, _pad: 0 }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A map handle is a file descriptor; a panic elsewhere cannot leave it half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A listener's descriptor, for a map that only reads it.
struct Fd(i32);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> i32 {
        self.0
    }
}
