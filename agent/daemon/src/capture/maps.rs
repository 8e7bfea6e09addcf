//! The agent's side of the maps that it shares with the programs. Each operation is one system call or a few; locks are
//! held for no longer.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, io,
    net::IpAddr,
    os::fd::AsRawFd,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ambit_ebpf_common::{
    Addr, Counters, FAMILY_V4, FAMILY_V6, Flow, ListenerKey, Origin, OriginKey, Pod, ProbeKey, Socket, addr,
};
use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues, SkStorage, SockHash},
};

use super::{CaptureError, pod::PodNet};

/// The maps by name that all programs of a node share; each is pinned.
pub(super) const NAMES: [&str; 9] =
    ["PODS", "DESTINATIONS", "SOCKETS", "ORIGINS", "BYPASS", "LISTENERS", "COUNTERS", "KUBELETS", "PROBES"];

/// An insertion fails where there is an entry (bpf(2)).
const BPF_NOEXIST: u64 = 1;

/// The map of one copy of the inbound program.
const NETNS: &str = "NETNS";

/// Tells a copy of the inbound program which network namespace it is for.
pub(super) fn set_netns(ebpf: &mut Ebpf, cookie: u64) -> Result<(), CaptureError> {
    let failed = |source| CaptureError::Map { map: NETNS, source };
    let map = ebpf.map_mut(NETNS).ok_or(CaptureError::NoPrograms)?;
    let mut netns = Array::try_from(map).map_err(failed)?;
    netns.set(0, cookie, 0).map_err(failed)
}

/// The agent's side of the maps. The locks are held for one system call each.
pub(super) struct Maps {
    pods: Mutex<HashMap<MapData, u64, Pod>>,
    destinations: Mutex<HashMap<MapData, Addr, u32>>,
    sockets: Mutex<SkStorage<MapData, Socket>>,
    origins: HashMap<MapData, OriginKey, Origin>,
    bypass: Mutex<HashMap<MapData, Flow, u32>>,
    listeners: Mutex<SockHash<MapData, ListenerKey>>,
    counters: Mutex<PerCpuHashMap<MapData, u64, Counters>>,
    kubelets: Mutex<HashMap<MapData, u64, u64>>,
    probes: Mutex<HashMap<MapData, ProbeKey, u64>>,
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
            kubelets: Mutex::new(map(ebpf, "KUBELETS")?),
            probes: Mutex::new(map(ebpf, "PROBES")?),
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
        let wanted = destinations.iter().map(|ip| (addr(*ip), 1)).collect();
        become_equal(&mut lock(&self.destinations), &wanted).map_err(failed("DESTINATIONS"))
    }

    /// Makes `kubelets` the kubelet's cgroups: id to the cookie of the kubelet's network namespace.
    pub(super) fn set_kubelets(&self, kubelets: &BTreeMap<u64, u64>) -> Result<(), CaptureError> {
        become_equal(&mut lock(&self.kubelets), kubelets).map_err(failed("KUBELETS"))
    }

    /// Makes `probes` the ports that the kubelet may probe: pod's port to the cookie of its network namespace.
    pub(super) fn set_probes(&self, probes: &BTreeMap<ProbeKey, u64>) -> Result<(), CaptureError> {
        become_equal(&mut lock(&self.probes), probes).map_err(failed("PROBES"))
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

    /// Has connects of a pod that is not in the map refused: an agent with other maps has enrolled it.
    pub(super) fn close_unknown_pod(&self, cookie: u64) -> Result<(), CaptureError> {
        match lock(&self.pods).insert(cookie, Pod::default(), BPF_NOEXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(())
            }
            done => done.map_err(failed("PODS")),
        }
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
            probes: sum.probes + cpu.probes,
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

/// Makes the map hold what is `wanted` and nothing else: additions and changes first.
fn become_equal<K, V>(map: &mut HashMap<MapData, K, V>, wanted: &BTreeMap<K, V>) -> Result<(), MapError>
where
    K: aya::Pod + Ord,
    V: aya::Pod + PartialEq,
{
    let present: BTreeMap<K, V> = map.iter().collect::<Result<_, _>>()?;
    for (key, value) in wanted.iter().filter(|(key, value)| present.get(key) != Some(value)) {
        map.insert(key, value, 0)?;
    }
    for key in present.keys().filter(|key| !wanted.contains_key(key)) {
        map.remove(key)?;
    }
    Ok(())
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
