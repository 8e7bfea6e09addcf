//! The maps that the programs and the agent share. The agent pins them, so they outlive it.

use ambit_ebpf_common::{
    Addr, Counters, DestinationKey, Flow, ListenerKey, Origin, OriginKey, Patience, Pod, ProbeKey,
    ResolverKey, Socket,
};
use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuHashMap, RingBuf, SockHash},
};

/// Enrolled pods by the cookie of their network namespace.
#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(4096, 0);

/// What is captured: the addresses of enrolled pods and of services with one, ports of external addresses, node ports.
#[map]
pub static DESTINATIONS: HashMap<DestinationKey, u32> =
    HashMap::with_max_entries(262_144, 1 /* BPF_F_NO_PREALLOC */);

/// At 0: `CAPTURE_EVERYTHING`, or 0.
#[map]
pub static SETTINGS: Array<u32> = Array::with_max_entries(1, 0);

/// Per socket: captured from where to where, or the agent's own. A pod cannot write it.
#[btf_map]
pub static SOCKETS: SkStorage<Socket> = SkStorage::new();

/// Original destinations of captured connections on their way to the agent's accept.
#[map]
pub static ORIGINS: LruHashMap<OriginKey, Origin> = LruHashMap::with_max_entries(131_072, 0);

/// The kubelet's cgroups by their ids; the value is the cookie of the network namespace that the kubelet is in.
#[map]
pub static KUBELETS: HashMap<u64, u64> = HashMap::with_max_entries(16, 0);

/// Ports that enrolled pods declare as probes; the value is the cookie of the pod's network namespace.
#[map]
pub static PROBES: HashMap<ProbeKey, u64> = HashMap::with_max_entries(32_768, 1 /* BPF_F_NO_PREALLOC */);

/// The agent's own dials to applications, while they connect, and the kubelet's probes, while they are open.
#[map]
pub static BYPASS: HashMap<Flow, u32> = HashMap::with_max_entries(131_072, 1 /* BPF_F_NO_PREALLOC */);

/// How long applications wait for the other ends of their connections, by the connection as the application has it.
#[map]
pub static PATIENCE: LruHashMap<Flow, Patience> = LruHashMap::with_max_entries(32_768, 0);

/// The agent's listeners. A listener that dies leaves the map by itself.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(8192, 0);

/// Which resolver each of the agent's sockets for queries stands for; free ones have no entry.
#[map]
pub static RESOLVERS: HashMap<ResolverKey, Addr> =
    HashMap::with_max_entries(32_768, 1 /* BPF_F_NO_PREALLOC */);

/// The ports of the agent's sockets for queries.
#[map]
pub static QUERIES: HashMap<ResolverKey, u32> =
    HashMap::with_max_entries(32_768, 1 /* BPF_F_NO_PREALLOC */);

/// What happened, per pod.
#[map]
pub static COUNTERS: PerCpuHashMap<u64, Counters> =
    PerCpuHashMap::with_max_entries(4096, 1 /* BPF_F_NO_PREALLOC */);

// The rest belongs to one pod: each copy of the programs in it has maps of its own.

/// The cookie of the pod's network namespace: the kernel has no helper that tells it in these hooks.
#[map]
pub static NETNS: Array<u64> = Array::with_max_entries(1, 0);

/// SYNs that wait for the agent.
#[map]
pub static PARKED: RingBuf = RingBuf::with_byte_size(16 * 1024, 0);

/// Where connections need not wait: the destination has just answered several. The value is until when, in nanoseconds
/// of the monotonic clock.
#[map]
pub static ANSWERED: HashMap<DestinationKey, u64> =
    HashMap::with_max_entries(1024, 1 /* BPF_F_NO_PREALLOC */);

/// At 0: a second in the upper half, and how many SYNs from outside have been parked in it.
#[map]
pub static PACE: Array<u64> = Array::with_max_entries(1, 0);
