//! Loading, attaching, pinning, adopting and removing the programs, and the maps they share with the agent.
//!
//! Layout under the bpf file system: `ambit/<node>/maps/<MAP>`, `ambit/<node>/links/<program>`, and
//! `ambit/<node>/pods/<uid>_<cookie>` for the inbound hook of each pod.

use std::{
    collections::HashSet,
    fmt,
    fs::{self, File},
    io,
    net::IpAddr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ambit_ebpf_common::{
    Addr, Counters, FAMILY_V4, FAMILY_V6, Flow, ListenerKey, Origin, OriginKey, Pod, Socket, addr,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues, SkStorage, SockHash},
    programs::{
        CgroupAttachMode, CgroupSock, CgroupSockAddr, SkLookup, SockOps,
        links::{FdLink, PinnedLink},
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{CaptureError, CaptureSettings, filesystem, pod::PodNet};

/// The object built by `cargo xtask ebpf`; empty in a plain `cargo build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ambit-ebpf"));

const MAPS: [&str; 7] = ["PODS", "DESTINATIONS", "SOCKETS", "ORIGINS", "BYPASS", "LISTENERS", "COUNTERS"];
const CGROUP_PROGRAMS: [&str; 4] =
    ["ambit_connect4", "ambit_connect6", "ambit_getpeername4", "ambit_getpeername6"];
const SOCK_CREATE: &str = "ambit_sock_create";
const SOCK_OPS: &str = "ambit_sock_ops";
const INBOUND: &str = "ambit_inbound";

/// The programs of one node, attached and pinned.
#[derive(Debug)]
pub(super) struct Programs {
    node_dir: PathBuf,
    maps: Arc<Maps>,
    /// Drains the programs' log.
    logger: Option<tokio::task::JoinHandle<()>>,
}

impl Programs {
    /// Loads the programs over the pinned maps, if there are, and puts them in the place of the pinned links without a
    /// gap.
    pub(super) fn attach(settings: &CaptureSettings) -> Result<Self, CaptureError> {
        let cgroup_path = filesystem::cgroup_root(settings.cgroup_root.as_deref())?;
        let cgroup = File::open(&cgroup_path).map_err(|source| CaptureError::Host {
            step: "open",
            path: cgroup_path,
            source,
        })?;
        let node_dir = node_dir(&settings.bpf_root, &settings.node);
        for dir in ["maps", "links", "pods"] {
            let path = node_dir.join(dir);
            fs::create_dir_all(&path)
                .map_err(|source| CaptureError::Host { step: "create", path, source })?;
        }
        let mut ebpf = load(&node_dir, 0)?;
        let logger = log(&mut ebpf);
        let maps = Arc::new(Maps::take(&mut ebpf)?);
        maps.clear_bypass();
        for name in CGROUP_PROGRAMS {
            let program: &mut CgroupSockAddr = program(&mut ebpf, name)?;
            let link = program
                .load()
                .and_then(|()| program.attach(&cgroup, CgroupAttachMode::default()))
                .and_then(|id| program.take_link(id))
                .map_err(at(name))?;
            pin(FdLink::try_from(link).map_err(|error| pin_error(&node_dir, error))?, &link_path(&node_dir, name))?;
        }
        let program: &mut CgroupSock = self::program(&mut ebpf, SOCK_CREATE)?;
        let link = program
            .load()
            .and_then(|()| program.attach(&cgroup, CgroupAttachMode::default()))
            .and_then(|id| program.take_link(id))
            .map_err(at(SOCK_CREATE))?;
        pin(FdLink::try_from(link).map_err(|error| pin_error(&node_dir, error))?, &link_path(&node_dir, SOCK_CREATE))?;
        let program: &mut SockOps = self::program(&mut ebpf, SOCK_OPS)?;
        let link = program
            .load()
            .and_then(|()| program.attach(&cgroup, CgroupAttachMode::default()))
            .and_then(|id| program.take_link(id))
            .map_err(at(SOCK_OPS))?;
        pin(FdLink::try_from(link).map_err(|error| pin_error(&node_dir, error))?, &link_path(&node_dir, SOCK_OPS))?;
        Ok(Self { node_dir, maps, logger })
    }

    pub(super) fn maps(&self) -> Arc<Maps> {
        self.maps.clone()
    }

    /// Makes `destinations` the captured ones: additions first.
    pub(super) fn set_destinations(&self, destinations: &HashSet<IpAddr>) -> Result<(), CaptureError> {
        let wanted: HashSet<Addr> = destinations.iter().map(|ip| addr(*ip)).collect();
        let mut map = lock(&self.maps.destinations);
        let failed = |source| CaptureError::Map { map: "DESTINATIONS", source };
        let present: HashSet<Addr> = map.keys().collect::<Result<_, _>>().map_err(failed)?;
        for new in wanted.difference(&present) {
            map.insert(new, 1, 0).map_err(failed)?;
        }
        for old in present.difference(&wanted) {
            ignore_missing(map.remove(old)).map_err(failed)?;
        }
        Ok(())
    }

    /// Inbound first, then outbound: a pod that can be reached only by its agent may call out.
    pub(super) fn admit(&self, pod: &PodNet) -> Result<(), CaptureError> {
        let cookie = pod.cookie();
        let mut zero = lock(&self.maps.counters);
        if zero.get(&cookie, 0).is_err() {
            let cpus = aya::util::nr_cpus().map_err(|(_, source)| CaptureError::Host {
                step: "count the CPUs in",
                path: "/sys/devices/system/cpu".into(),
                source,
            })?;
            PerCpuValues::try_from(vec![Counters::default(); cpus])
                .map_err(MapError::from)
                .and_then(|values| zero.insert(cookie, values, 0))
                .map_err(|source| CaptureError::Map { map: "COUNTERS", source })?;
        }
        drop(zero);
        for (v6, fd) in pod.listener_fds() {
            lock(&self.maps.listeners)
                .insert(listener_key(cookie, v6), Fd(fd), 0)
                .map_err(|source| CaptureError::Map { map: "LISTENERS", source })?;
        }
        let mut ebpf = load(&self.node_dir, cookie)?;
        let program: &mut SkLookup = program(&mut ebpf, INBOUND)?;
        let link = program
            .load()
            .and_then(|()| program.attach(pod.netns()))
            .and_then(|id| program.take_link(id))
            .map_err(at(INBOUND))?;
        pin(FdLink::from(link), &pod_path(&self.node_dir, pod.uid(), cookie))?;
        self.forget_older(pod);
        lock(&self.maps.pods)
            .insert(cookie, pod.entry(), 0)
            .map_err(|source| CaptureError::Map { map: "PODS", source })
    }

    /// Removes what is left of the same pod in a network namespace that it no longer has.
    fn forget_older(&self, pod: &PodNet) {
        let uid = pin_name(pod.uid());
        for pin in pinned_pods(&self.node_dir) {
            if pin.uid == uid && pin.cookie != pod.cookie() {
                let _: Result<(), MapError> = lock(&self.maps.pods).remove(&pin.cookie);
                unpin(&pin.path);
            }
        }
    }

    /// The reverse of [`Self::admit`], in reverse order. Nothing in it can fail in a way that matters.
    pub(super) fn dismiss(&self, pod: &PodNet) {
        let cookie = pod.cookie();
        let _: Result<(), MapError> = lock(&self.maps.pods).remove(&cookie);
        unpin(&pod_path(&self.node_dir, pod.uid(), cookie));
        for (v6, _) in pod.listener_fds() {
            let _: Result<(), MapError> = lock(&self.maps.listeners).remove(&listener_key(cookie, v6));
        }
        let _: Result<(), MapError> = lock(&self.maps.counters).remove(&cookie);
        // With the last pod goes everything.
        if fs::read_dir(self.node_dir.join("pods")).is_ok_and(|mut pods| pods.next().is_none()) {
            remove_node(&self.node_dir);
        }
    }

    pub(super) fn counters(&self, cookie: u64) -> Counters {
        let Ok(values) = lock(&self.maps.counters).get(&cookie, 0) else {
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

impl Drop for Programs {
    fn drop(&mut self) {
        if let Some(logger) = self.logger.take() {
            logger.abort();
        }
    }
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
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
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
    fn clear_bypass(&self) {
        let mut bypass = lock(&self.bypass);
        let stale: Vec<Flow> = bypass.keys().filter_map(Result::ok).collect();
        for flow in stale {
            let _: Result<(), MapError> = bypass.remove(&flow);
        }
    }
}

/// Where a node's pins are.
pub(super) fn node_dir(bpf_root: &Path, node: &str) -> PathBuf {
    // The bpf file system allows no dots in names.
    bpf_root.join("ambit").join(node.replace(['.', '/'], "_"))
}

/// What a pod's pin tells.
pub(super) struct PodPin {
    path: PathBuf,
    /// The pod's UID as [`pin_name`] writes it.
    uid: String,
    /// Cookie of the network namespace that it had.
    pub(super) cookie: u64,
}

/// The pods that agents of the node at `node_dir` have enrolled.
pub(super) fn pinned_pods(node_dir: &Path) -> Vec<PodPin> {
    let pods = fs::read_dir(node_dir.join("pods")).into_iter().flatten().flatten();
    pods.filter_map(|pin| {
        let name = pin.file_name().to_string_lossy().into_owned();
        let (uid, cookie) = name.rsplit_once('_')?;
        Some(PodPin { path: pin.path(), uid: uid.to_owned(), cookie: cookie.parse().ok()? })
    })
    .collect()
}

/// Removes the pins of pods that are not in `expected`, and answers with them; with none expected, everything of the node
/// goes.
pub(super) fn sweep(node_dir: &Path, expected: &HashSet<Arc<str>>) -> Vec<PodPin> {
    let expected: HashSet<String> = expected.iter().map(|uid| pin_name(uid)).collect();
    let (left, gone): (Vec<_>, Vec<_>) =
        pinned_pods(node_dir).into_iter().partition(|pin| expected.contains(&pin.uid));
    for pin in &gone {
        remove_pod_entry(node_dir, pin.cookie);
        unpin(&pin.path);
    }
    if left.is_empty() {
        remove_node(node_dir);
    }
    gone
}

/// The directories of `node`, or of all nodes.
pub(super) fn node_dirs(bpf_root: &Path, node: Option<&str>) -> io::Result<Vec<PathBuf>> {
    match (node, fs::read_dir(bpf_root.join("ambit"))) {
        (Some(node), _) => Ok(vec![node_dir(bpf_root, node)]),
        (None, Ok(nodes)) => Ok(nodes.flatten().map(|node| node.path()).collect()),
        (None, Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        (None, Err(error)) => Err(error),
    }
}

/// Removes a node's pins, the ones that send traffic to the agent first.
pub(super) fn remove_node(node_dir: &Path) -> Vec<String> {
    let mut removed = Vec::new();
    for dir in ["links", "pods", "maps"] {
        let dir = node_dir.join(dir);
        for pin in fs::read_dir(&dir).into_iter().flatten().flatten() {
            unpin(&pin.path());
            removed.push(pin.path().display().to_string());
        }
        let _: io::Result<()> = fs::remove_dir(&dir);
    }
    let _: io::Result<()> = fs::remove_dir(node_dir);
    if let Some(root) = node_dir.parent() {
        // Fails while another node's pins are in it.
        let _: io::Result<()> = fs::remove_dir(root);
    }
    removed
}

fn remove_pod_entry(node_dir: &Path, cookie: u64) {
    let Ok(map) = MapData::from_pin(node_dir.join("maps/PODS")) else {
        return;
    };
    if let Ok(mut pods) = HashMap::<_, u64, Pod>::try_from(Map::HashMap(map)) {
        let _: Result<(), MapError> = pods.remove(&cookie);
    }
}

fn load(node_dir: &Path, netns: u64) -> Result<Ebpf, CaptureError> {
    if OBJECT.is_empty() {
        return Err(CaptureError::NoPrograms);
    }
    let mut loader = EbpfLoader::new();
    // The programs read contexts and maps only: no kernel types to relocate against.
    loader.btf(None).override_global("NETNS", &netns, true);
    for map in MAPS {
        loader.map_pin_path(map, node_dir.join("maps").join(map));
    }
    Ok(loader.load(OBJECT)?)
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, CaptureError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    ebpf.program_mut(name).ok_or(CaptureError::NoPrograms)?.try_into().map_err(at(name))
}

fn at(program: &'static str) -> impl FnOnce(aya::programs::ProgramError) -> CaptureError {
    move |source| CaptureError::Program { program, source }
}

/// Pins `link` at `path`, in the place of what may be there: for a moment both are attached, never neither.
fn pin(link: FdLink, path: &Path) -> Result<(), CaptureError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!("{name}-new"));
    unpin(&fresh);
    let pinned: PinnedLink = link.pin(&fresh).map_err(|error| pin_error(&fresh, error))?;
    fs::rename(&fresh, path).map_err(|error| pin_error(path, error))?;
    drop(pinned);
    Ok(())
}

fn pin_error(path: &Path, error: impl ToString) -> CaptureError {
    CaptureError::Pin { path: path.to_owned(), message: error.to_string() }
}

fn unpin(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove an eBPF pin");
        }
        _ => {}
    }
}

fn link_path(node_dir: &Path, program: &str) -> PathBuf {
    node_dir.join("links").join(program)
}

fn pod_path(node_dir: &Path, uid: &str, cookie: u64) -> PathBuf {
    node_dir.join("pods").join(format!("{}_{cookie}", pin_name(uid)))
}

fn pin_name(uid: &str) -> String {
    uid.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "-")
}

fn listener_key(netns: u64, v6: bool) -> ListenerKey {
    ListenerKey { netns, family: if v6 { FAMILY_V6 } else { FAMILY_V4 }, _pad: 0 }
}

fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(nix::libc::ENOENT) => Ok(()),
        other => other,
    }
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

fn log(ebpf: &mut Ebpf) -> Option<tokio::task::JoinHandle<()>> {
    let logger = aya_log::EbpfLogger::init_with_logger(ebpf, TracingLogger)
        .inspect_err(|error| tracing::warn!(%error, "the eBPF programs' log cannot be read"))
        .ok()?;
    // SAFETY: the logger owns its descriptor and keeps it open for as long as it is registered.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }.ok()?;
    Some(tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }))
}

/// Hands the programs' log lines to `tracing`.
struct TracingLogger;

impl log::Log for TracingLogger {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        match record.level() {
            log::Level::Error => tracing::error!(target: "ebpf", "{}", record.args()),
            log::Level::Warn => tracing::warn!(target: "ebpf", "{}", record.args()),
            log::Level::Info => tracing::info!(target: "ebpf", "{}", record.args()),
            log::Level::Debug => tracing::debug!(target: "ebpf", "{}", record.args()),
            log::Level::Trace => tracing::trace!(target: "ebpf", "{}", record.args()),
        }
    }

    fn flush(&self) {}
}
