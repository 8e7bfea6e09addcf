//! The agent's side of the maps that it shares with the programs. Each operation is one system call or a few; locks are
//! held for no longer. What the agent alone writes follows changes; it is read only where an earlier agent may have written.

mod held;
mod origins;

use std::{collections::BTreeMap, fmt, io, mem, os::fd::AsRawFd, path::Path};

use ambit_ebpf_common::{
    Addr, CAPTURE_EVERYTHING, Counters, DestinationKey, FAMILY_V4, FAMILY_V6, FLOW_DELIVERY, Flow,
    ListenerKey, Origin, OriginKey, Patience, Pod, ProbeKey, RESOLVER_SLOTS, ResolverKey, Socket,
};
use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues, SkStorage, SockHash},
};

use nix::libc;

use super::{CaptureError, pod::PodNet};
use held::{Held, Locked, Operations};
use origins::Origins;

/// The maps by name that all programs of a node share; each is pinned.
pub(super) const NAMES: [&str; 13] = [
    "PODS",
    "DESTINATIONS",
    "SETTINGS",
    "SOCKETS",
    "ORIGINS",
    "BYPASS",
    "LISTENERS",
    "COUNTERS",
    "KUBELETS",
    "PROBES",
    "PATIENCE",
    "RESOLVERS",
    "QUERIES",
];

/// An insertion fails where there is an entry (bpf(2)).
const BPF_NOEXIST: u64 = 1;

/// The map of one copy of the pods' programs.
pub(super) const NETNS: &str = "NETNS";

/// Tells a copy of the pods' programs which network namespace it is for.
pub(super) fn set_netns(ebpf: &mut Ebpf, cookie: u64) -> Result<(), CaptureError> {
    let failed = |source| CaptureError::Map { map: NETNS, source };
    let map = ebpf.map_mut(NETNS).ok_or(CaptureError::NoPrograms)?;
    let mut netns = Array::try_from(map).map_err(failed)?;
    netns.set(0, cookie, 0).map_err(failed)
}

/// The agent's side of the maps.
pub(super) struct Maps {
    pods: Locked<HashMap<MapData, u64, Pod>>,
    destinations: Locked<Held<DestinationKey, u32>>,
    room_for_destinations: usize,
    settings: Locked<Array<MapData, u32>>,
    sockets: Locked<SkStorage<MapData, Socket>>,
    origins: Origins,
    bypass: Locked<HashMap<MapData, Flow, u32>>,
    listeners: Locked<SockHash<MapData, ListenerKey>>,
    counters: Locked<PerCpuHashMap<MapData, u64, Counters>>,
    kubelets: Locked<Held<u64, u64>>,
    probes: Locked<Held<ProbeKey, u64>>,
    patience: HashMap<MapData, Flow, Patience>,
    patience_read: Operations,
    resolvers: Locked<HashMap<MapData, ResolverKey, Addr>>,
    queries: Locked<HashMap<MapData, ResolverKey, u32>>,
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
        let room_for_destinations = room(ebpf, "DESTINATIONS")?;
        Ok(Self {
            room_for_destinations,
            settings: Locked::new(map(ebpf, "SETTINGS")?),
            pods: Locked::new(map(ebpf, "PODS")?),
            destinations: Locked::new(Held::new(map(ebpf, "DESTINATIONS")?)),
            sockets: Locked::new(map(ebpf, "SOCKETS")?),
            origins: Origins::new(ebpf.take_map(origins::MAP).ok_or(CaptureError::NoPrograms)?)?,
            bypass: Locked::new(map(ebpf, "BYPASS")?),
            listeners: Locked::new(map(ebpf, "LISTENERS")?),
            counters: Locked::new(map(ebpf, "COUNTERS")?),
            kubelets: Locked::new(Held::new(map(ebpf, "KUBELETS")?)),
            probes: Locked::new(Held::new(map(ebpf, "PROBES")?)),
            patience: map(ebpf, "PATIENCE")?,
            patience_read: Operations::default(),
            resolvers: Locked::new(map(ebpf, "RESOLVERS")?),
            queries: Locked::new(map(ebpf, "QUERIES")?),
        })
    }

    /// How many system calls each map has taken, by the maps' names.
    pub(super) fn operations(&self) -> [(&'static str, u64); NAMES.len()] {
        [
            ("PODS", self.pods.operations()),
            ("DESTINATIONS", self.destinations.operations()),
            ("SETTINGS", self.settings.operations()),
            ("SOCKETS", self.sockets.operations()),
            ("ORIGINS", self.origins.operations()),
            ("BYPASS", self.bypass.operations()),
            ("LISTENERS", self.listeners.operations()),
            ("COUNTERS", self.counters.operations()),
            ("KUBELETS", self.kubelets.operations()),
            ("PROBES", self.probes.operations()),
            ("PATIENCE", self.patience_read.count()),
            ("RESOLVERS", self.resolvers.operations()),
            ("QUERIES", self.queries.operations()),
        ]
    }

    /// Another agent may have written: what the maps hold has to be read again.
    pub(super) fn forget_held(&self) {
        self.destinations.several(|held, _| held.forget());
        self.kubelets.several(|held, _| held.forget());
        self.probes.several(|held, _| held.forget());
    }

    /// Tells the programs that `socket` is the agent's own. The mark lives and dies with the socket.
    pub(super) fn mark(&self, socket: &impl AsRawFd, state: Socket) -> Result<(), MapError> {
        self.sockets.once(|sockets| sockets.insert(socket, state, 0))
    }

    /// How long an application waits for the other end of a connection, if it has said so.
    pub(super) fn patience(&self, connection: &Flow) -> Option<Patience> {
        self.patience_read.add(1);
        self.patience.get(connection, 0).ok()
    }

    /// Where a connection that has been accepted was going; what comes with the same key later is another.
    pub(super) fn take_origin(&self, key: &OriginKey) -> Option<Origin> {
        self.origins.take(key)
    }

    /// Whether an application still wants to connect, and has not been accepted.
    pub(super) fn has_origin(&self, key: &OriginKey) -> bool {
        self.origins.has(key)
    }

    /// Has the inbound hook let through a dial that is about to be made, as long as what is answered lives. One that cannot
    /// be recorded must not be made: it would come back to the agent.
    pub(super) fn record(&self, flow: Flow) -> io::Result<Recorded<'_>> {
        match self.bypass.once(|bypass| bypass.insert(flow, FLOW_DELIVERY, BPF_NOEXIST)) {
            Ok(()) => Ok(Recorded { maps: self, flow }),
            Err(error) if is_full(&error) => Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "too many of this node's applications and probes keep connections waiting (eBPF map BYPASS is full)",
            )),
            Err(MapError::SyscallError(error)) => Err(error.io_error),
            Err(error) => Err(io::Error::other(error.to_string())),
        }
    }

    /// What a dead agent's dials left: nothing of this agent's is in the map yet.
    pub(super) fn clear_bypass(&self) {
        self.bypass.several(|bypass, operations| {
            let stale: Vec<Flow> = bypass.keys().filter_map(Result::ok).collect();
            operations.add(1 + 2 * stale.len());
            for flow in stale {
                let _: Result<(), MapError> = bypass.remove(&flow);
            }
        });
    }

    /// Whether it is known which destinations are captured.
    pub(super) fn holds_destinations(&self) -> bool {
        self.destinations.several(|held, _| held.is_known())
    }

    /// How many destinations can be captured.
    pub(super) fn room_for_destinations(&self) -> usize {
        self.room_for_destinations
    }

    /// What the map of destinations holds has to be read again before it is followed.
    pub(super) fn forget_destinations(&self) {
        self.destinations.several(|held, _| held.forget());
    }

    /// Makes `destinations` the captured ones: additions first.
    pub(super) fn set_destinations(
        &self,
        destinations: BTreeMap<DestinationKey, u32>,
    ) -> Result<(), CaptureError> {
        self.destinations
            .several(|held, operations| held.become_equal(destinations, operations))
            .map_err(failed("DESTINATIONS"))
    }

    /// Begins and ends the capture of single destinations.
    pub(super) fn change_destinations(
        &self,
        begun: impl Iterator<Item = DestinationKey>,
        ended: impl Iterator<Item = DestinationKey>,
    ) -> Result<(), CaptureError> {
        self.destinations
            .several(|held, operations| held.change(begun.map(|key| (key, 1)), ended, operations))
            .map_err(failed("DESTINATIONS"))
    }

    /// Has everything captured that enrolled pods dial, or only the destinations.
    pub(super) fn capture_everything(&self, everything: bool) -> Result<(), CaptureError> {
        let value = if everything { CAPTURE_EVERYTHING } else { 0 };
        self.settings.once(|settings| settings.set(0, value, 0)).map_err(failed("SETTINGS"))
    }

    /// Makes `kubelets` the kubelet's cgroups: id to the cookie of the kubelet's network namespace.
    pub(super) fn set_kubelets(&self, kubelets: BTreeMap<u64, u64>) -> Result<(), CaptureError> {
        self.kubelets
            .several(|held, operations| held.become_equal(kubelets, operations))
            .map_err(failed("KUBELETS"))
    }

    /// Makes `probes` the ports that the kubelet may probe: pod's port to the cookie of its network namespace.
    pub(super) fn set_probes(&self, probes: BTreeMap<ProbeKey, u64>) -> Result<(), CaptureError> {
        self.probes
            .several(|held, operations| held.become_equal(probes, operations))
            .map_err(failed("PROBES"))
    }

    /// Puts a pod's listeners where the inbound hook finds them, and its counters where all programs do.
    pub(super) fn add_listeners(&self, pod: &PodNet) -> Result<(), CaptureError> {
        let cookie = pod.cookie();
        if let Err(error) = self.add_counters(cookie) {
            tracing::warn!(pod = %pod.uid(), %error, "what the programs do in the pod is not counted");
        }
        for (v6, fd) in pod.listener_fds() {
            self.listeners
                .once(|listeners| listeners.insert(listener_key(cookie, v6), Fd(fd), 0))
                .map_err(failed("LISTENERS"))?;
        }
        Ok(())
    }

    fn add_counters(&self, cookie: u64) -> Result<(), CaptureError> {
        if self.counters.once(|counters| counters.get(&cookie, 0).is_ok()) {
            return Ok(());
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| CaptureError::Host {
            step: "count the CPUs in",
            path: "/sys/devices/system/cpu".into(),
            source,
        })?;
        PerCpuValues::try_from(vec![Counters::default(); cpus])
            .map_err(MapError::from)
            .and_then(|zeros| self.counters.once(|counters| counters.insert(cookie, zeros, 0)))
            .map_err(failed("COUNTERS"))
    }

    /// The resolver that one of the agent's sockets for queries stands for.
    pub(super) fn resolver(&self, key: &ResolverKey) -> Option<Addr> {
        self.resolvers.once(|resolvers| resolvers.get(key, 0).ok())
    }

    /// It stands for none any more.
    pub(super) fn free_resolver(&self, key: &ResolverKey) {
        let _: Result<(), MapError> = self.resolvers.once(|resolvers| resolvers.remove(key));
    }

    /// Tells the programs the port of one of the agent's sockets for queries.
    pub(super) fn set_query_port(&self, key: ResolverKey, port: u16) -> Result<(), CaptureError> {
        self.queries.once(|queries| queries.insert(key, u32::from(port), 0)).map_err(failed("QUERIES"))
    }

    /// Has the pod's connects captured.
    pub(super) fn add_pod(&self, pod: &PodNet) -> Result<(), CaptureError> {
        self.pods.once(|pods| pods.insert(pod.cookie(), pod.entry(), 0)).map_err(failed("PODS"))
    }

    /// Has connects of a pod that is not in the map refused: an agent with other maps has enrolled it.
    pub(super) fn close_unknown_pod(&self, cookie: u64) -> Result<(), CaptureError> {
        match self.pods.once(|pods| pods.insert(cookie, Pod::default(), BPF_NOEXIST)) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(())
            }
            done => done.map_err(failed("PODS")),
        }
    }

    /// Has connects in the network namespace `cookie` left alone, and forgets what was counted there. It may not have been in
    /// the maps.
    pub(super) fn remove_pod(&self, cookie: u64) {
        let _: Result<(), MapError> = self.pods.once(|pods| pods.remove(&cookie));
        let _: Result<(), MapError> = self.counters.once(|counters| counters.remove(&cookie));
        for key in resolver_keys(cookie) {
            self.free_resolver(&key);
            let _: Result<(), MapError> = self.queries.once(|queries| queries.remove(&key));
        }
    }

    /// Removes the listeners that [`Self::add_listeners`] added.
    pub(super) fn remove_listeners(&self, pod: &PodNet) {
        for (v6, _) in pod.listener_fds() {
            let key = listener_key(pod.cookie(), v6);
            let _: Result<(), MapError> = self.listeners.once(|listeners| listeners.remove(&key));
        }
    }

    /// What the programs did in the network namespace `cookie`, over all CPUs.
    pub(super) fn counters(&self, cookie: u64) -> Counters {
        let Ok(values) = self.counters.once(|counters| counters.get(&cookie, 0)) else {
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

/// Keeps a dial recorded.
pub(super) struct Recorded<'a> {
    maps: &'a Maps,
    flow: Flow,
}

impl Recorded<'_> {
    /// Leaves it to the programs to take it off: once the application's end of the connection stands, or the dial is no more.
    pub(super) fn leave(self) {
        mem::forget(self);
    }
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        // The programs take it off too where a dial has failed: it may be gone.
        let _: Result<(), MapError> = self.maps.bypass.once(|bypass| bypass.remove(&self.flow));
    }
}

/// Does what [`Maps::remove_pod`] does with the maps that an earlier agent pinned in `dir`.
pub(super) fn remove_pinned_pod(dir: &Path, cookie: u64) {
    let pinned = |map: &str| MapData::from_pin(dir.join(map));
    if let Ok(map) = pinned("PODS")
        && let Ok(mut pods) = HashMap::<_, u64, Pod>::try_from(Map::HashMap(map))
    {
        let _: Result<(), MapError> = pods.remove(&cookie);
    }
    if let Ok(map) = pinned("COUNTERS")
        && let Ok(mut counters) = PerCpuHashMap::<_, u64, Counters>::try_from(Map::PerCpuHashMap(map))
    {
        let _: Result<(), MapError> = counters.remove(&cookie);
    }
    if let Ok(map) = pinned("RESOLVERS")
        && let Ok(mut resolvers) = HashMap::<_, ResolverKey, Addr>::try_from(Map::HashMap(map))
    {
        resolver_keys(cookie).for_each(|key| drop(resolvers.remove(&key)));
    }
    if let Ok(map) = pinned("QUERIES")
        && let Ok(mut queries) = HashMap::<_, ResolverKey, u32>::try_from(Map::HashMap(map))
    {
        resolver_keys(cookie).for_each(|key| drop(queries.remove(&key)));
    }
}

/// What a pod may have in the maps of resolvers.
fn resolver_keys(netns: u64) -> impl Iterator<Item = ResolverKey> {
    let of = move |family| (0..RESOLVER_SLOTS).map(move |slot| ResolverKey { netns, family, slot });
    of(FAMILY_V4).chain(of(FAMILY_V6))
}

/// How many entries a hash map has room for. An earlier agent may have made it.
fn room(ebpf: &Ebpf, name: &'static str) -> Result<usize, CaptureError> {
    let Some(Map::HashMap(map)) = ebpf.map(name) else { return Err(CaptureError::NoPrograms) };
    let info = map.info().map_err(|source| CaptureError::Map { map: name, source })?;
    Ok(usize::try_from(info.max_entries()).unwrap_or(usize::MAX))
}

fn failed(map: &'static str) -> impl Fn(MapError) -> CaptureError {
    move |source| {
        if is_full(&source) { CaptureError::Full { map } } else { CaptureError::Map { map, source } }
    }
}

/// Whether there is no room for another entry (bpf(2)).
fn is_full(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::E2BIG))
}

fn listener_key(netns: u64, v6: bool) -> ListenerKey {
    ListenerKey { netns, family: if v6 { FAMILY_V6 } else { FAMILY_V4 }, _pad: 0 }
}

/// A listener's descriptor, for a map that only reads it.
struct Fd(i32);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> i32 {
        self.0
    }
}
