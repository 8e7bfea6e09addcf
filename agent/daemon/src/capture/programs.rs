//! Loading and attaching the programs, in the place of what an earlier agent left, without a gap.

mod copies;

use std::{
    fmt,
    fs::{self, File},
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{
        CgroupAttachMode, CgroupSock, CgroupSockAddr, CgroupSockopt, SkLookup, SockOps, SocketFilter,
        links::FdLink,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use self::copies::Copies;
use super::{
    CaptureError, CaptureSettings, filesystem,
    maps::{self, Maps},
    parking::{self, Parking},
    pins,
    pod::PodNet,
};
use crate::error::with_causes;

/// The object built by `cargo xtask ebpf`; empty in a plain `cargo build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ambit-ebpf"));

const ADDRESS_HOOKS: [&str; 4] =
    ["ambit_connect4", "ambit_connect6", "ambit_getpeername4", "ambit_getpeername6"];
/// Those that only pods need whose DNS is captured.
const DNS_HOOKS: [&str; 4] = ["ambit_sendmsg4", "ambit_sendmsg6", "ambit_recvmsg4", "ambit_recvmsg6"];
const SOCK_CREATE: &str = "ambit_sock_create";
const SOCK_OPS: &str = "ambit_sock_ops";
const SETSOCKOPT: &str = "ambit_setsockopt";
const INBOUND: &str = "ambit_inbound";
const PARK: &str = "ambit_park";

// Each kind of program has a type of its own, and all the same methods.
macro_rules! attach {
    ($ebpf:expr, $cgroup:expr, $node_dir:expr, $kind:ty, $name:expr) => {{
        let program: &mut $kind = program($ebpf, $name)?;
        if program.fd().is_err() {
            program.load().map_err(at($name))?;
        }
        let link = program
            .attach(&*$cgroup, CgroupAttachMode::default())
            .and_then(|id| program.take_link(id))
            .map_err(at($name))?;
        let path = pins::link_path($node_dir, $name);
        pins::pin(FdLink::try_from(link).map_err(|error| pins::error(&path, &error))?, &path)?;
    }};
}

/// The programs of one node.
pub(super) struct Programs {
    node_dir: PathBuf,
    maps_dir: PathBuf,
    cgroup: File,
    copies: Copies,
    ebpf: Ebpf,
    maps: Arc<Maps>,
    /// Whether the hooks of the host's cgroup are this process's own.
    attached: bool,
    /// The same of those for DNS.
    attached_dns: bool,
    /// Drains the programs' log.
    logger: Option<tokio::task::JoinHandle<()>>,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs").field("node_dir", &self.node_dir).finish_non_exhaustive()
    }
}

impl Programs {
    /// Loads the programs over the pinned maps, if there are. Nothing is attached, and the maps are left as they are.
    pub(super) fn load(settings: &CaptureSettings) -> Result<Self, CaptureError> {
        let cgroup_path = filesystem::cgroup_root(settings.cgroup_root.as_deref())?;
        let cgroup = File::open(&cgroup_path).map_err(|source| CaptureError::Host {
            step: "open",
            path: cgroup_path,
            source,
        })?;
        let node_dir = pins::node_dir(&settings.bpf_root, &settings.node);
        let maps_dir = pins::maps_dir(&node_dir, &settings.map_entries);
        for path in [maps_dir.clone(), node_dir.join("links"), node_dir.join("pods")] {
            fs::create_dir_all(&path).map_err(|source| CaptureError::Host {
                step: "create",
                path,
                source,
            })?;
        }
        let mut loader = loader(Some(&maps_dir))?;
        for map in maps::NAMES {
            if let Some(entries) = settings.map_entries.get(map) {
                loader.map_max_entries(map, *entries);
            }
        }
        let mut ebpf = loader.load(OBJECT)?;
        let logger = log(&mut ebpf);
        let maps = Arc::new(Maps::take(&mut ebpf)?);
        Ok(Self {
            node_dir,
            maps_dir,
            cgroup,
            copies: Copies::by(loader),
            ebpf,
            maps,
            attached: false,
            attached_dns: false,
            logger,
        })
    }

    /// Puts the programs on the host's cgroup, in the place of the pinned links without a gap. Pods of an agent with other
    /// maps stay closed until they are admitted.
    pub(super) fn attach(&mut self) -> Result<(), CaptureError> {
        for pin in pins::pinned_pods(&self.node_dir) {
            self.maps.close_unknown_pod(pin.cookie)?;
        }
        let Self { node_dir, cgroup, ebpf, .. } = self;
        for name in ADDRESS_HOOKS {
            attach!(ebpf, cgroup, node_dir, CgroupSockAddr, name);
        }
        attach!(ebpf, cgroup, node_dir, CgroupSock, SOCK_CREATE);
        attach!(ebpf, cgroup, node_dir, SockOps, SOCK_OPS);
        // It only takes notes for this process, and goes with it.
        let notes: &mut CgroupSockopt = program(ebpf, SETSOCKOPT)?;
        notes
            .load()
            .and_then(|()| notes.attach(&*cgroup, CgroupAttachMode::default()))
            .map_err(at(SETSOCKOPT))?;
        self.attached = true;
        if std::mem::take(&mut self.attached_dns) {
            self.attach_dns()?;
        }
        Ok(())
    }

    /// Puts the programs for DNS there as well. No other pods pay for them.
    pub(super) fn attach_dns(&mut self) -> Result<(), CaptureError> {
        if !self.attached_dns {
            let Self { node_dir, cgroup, ebpf, .. } = self;
            for name in DNS_HOOKS {
                attach!(ebpf, cgroup, node_dir, CgroupSockAddr, name);
            }
            self.attached_dns = true;
        }
        Ok(())
    }

    /// Takes off those that an earlier agent left, of whose pods none has its DNS captured any more.
    pub(super) fn detach_dns(&mut self) {
        self.attached_dns = false;
        DNS_HOOKS.iter().for_each(|name| pins::unpin(&pins::link_path(&self.node_dir, name)));
    }

    /// Removes everything if no pod is enrolled.
    pub(super) fn forget(&self) {
        if pins::pinned_pods(&self.node_dir).is_empty() {
            self.copies.end(|| drop(pins::remove_node(&self.node_dir)));
        }
    }

    /// Removes the maps of agents of another version, or with others' sizes.
    pub(super) fn forget_other_maps(&self) {
        pins::remove_other_maps(&self.node_dir, &self.maps_dir);
    }

    /// Whether [`Self::attach`] has been done.
    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    pub(super) fn maps(&self) -> &Arc<Maps> {
        &self.maps
    }

    /// Inbound first, then outbound: a pod that can be reached only by its agent may call out.
    pub(super) fn admit(&mut self, pod: &PodNet) -> Result<(), CaptureError> {
        let mut ebpf = self.copies.next()?;
        maps::set_netns(&mut ebpf, pod.cookie())?;
        if pod.parking().is_none()
            && let Err(error) = park(&mut ebpf, pod)
        {
            tracing::warn!(
                pod = %pod.uid(), error = with_causes(&error),
                "the pod's connects succeed before it is known whether their destinations answer (CAP_NET_RAW is needed)"
            );
        }
        self.maps.add_listeners(pod)?;
        let program: &mut SkLookup = program(&mut ebpf, INBOUND)?;
        let link = program.attach(pod.netns()).and_then(|id| program.take_link(id)).map_err(at(INBOUND))?;
        pins::pin(FdLink::from(link), &pins::pod_path(&self.node_dir, pod.uid(), pod.cookie()))?;
        self.forget_older(pod);
        if pod.captures_dns() {
            self.attach_dns()?;
        }
        self.add_pod(pod)
    }

    /// Has the programs know what of the pod is captured.
    pub(super) fn add_pod(&self, pod: &PodNet) -> Result<(), CaptureError> {
        for (key, port) in pod.query_ports() {
            self.maps.set_query_port(key, port)?;
        }
        self.maps.add_pod(pod)
    }

    /// Removes what is left of the same pod in a network namespace that it no longer has.
    fn forget_older(&self, pod: &PodNet) {
        let uid = pins::pin_name(pod.uid());
        for pin in pins::pinned_pods(&self.node_dir) {
            if pin.uid == uid && pin.cookie != pod.cookie() {
                self.maps.remove_pod(pin.cookie);
                pins::unpin(&pin.path);
            }
        }
    }

    /// The reverse of [`Self::admit`], in reverse order. With the last pod goes everything.
    pub(super) fn dismiss(&self, pod: &PodNet) {
        self.maps.remove_pod(pod.cookie());
        pins::unpin(&pins::pod_path(&self.node_dir, pod.uid(), pod.cookie()));
        self.maps.remove_listeners(pod);
        self.forget();
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        if let Some(logger) = self.logger.take() {
            logger.abort();
        }
    }
}

/// Has the pod's clients wait until it is known what they are to be answered.
fn park(ebpf: &mut Ebpf, pod: &PodNet) -> Result<(), CaptureError> {
    let failed = |step: &'static str| {
        move |source| CaptureError::Netns { netns: pod.netns().path().to_owned(), step: step.into(), source }
    };
    let mut parking = None;
    pod.netns()
        .run(|| {
            let has = |v6| pod.listener_fds().any(|(is_v6, _)| is_v6 == v6);
            parking = Some(Parking::open(ebpf, has(false), has(true)));
            Ok(())
        })
        .map_err(failed("enter"))?;
    let Some(parking) = parking.transpose()? else { return Ok(()) };
    let program: &mut SocketFilter = program(ebpf, PARK)?;
    if program.fd().is_err() {
        program.load().map_err(at(PARK))?;
    }
    let filter = program.fd().map_err(at(PARK))?;
    pod.park(parking, filter.as_fd()).map_err(failed("attach the filter to the agent's listeners"))
}

/// A program's name, and whether the kernel takes it.
pub(super) type Rehearsed = (&'static str, Result<(), CaptureError>);

/// Loads every program and attaches it, the outbound ones to `cgroup` and the inbound one to `netns`, and takes all off
/// again. Pins nothing; answers with each program's name and how it went.
pub(super) fn rehearse(cgroup: &File, netns: BorrowedFd<'_>) -> Result<Vec<Rehearsed>, CaptureError> {
    let mut ebpf = loader(None)?.load(OBJECT)?;
    let mut done = Vec::new();
    macro_rules! rehearse {
        ($kind:ty, $name:expr, $($to:expr),+) => {
            let attached = program::<$kind>(&mut ebpf, $name).and_then(|program| {
                program.load().and_then(|()| program.attach($($to),+)).map(drop).map_err(at($name))
            });
            done.push(($name, attached));
        };
    }
    for name in ADDRESS_HOOKS.into_iter().chain(DNS_HOOKS) {
        rehearse!(CgroupSockAddr, name, cgroup, CgroupAttachMode::default());
    }
    rehearse!(CgroupSock, SOCK_CREATE, cgroup, CgroupAttachMode::default());
    rehearse!(SockOps, SOCK_OPS, cgroup, CgroupAttachMode::default());
    rehearse!(CgroupSockopt, SETSOCKOPT, cgroup, CgroupAttachMode::default());
    rehearse!(SkLookup, INBOUND, netns);
    let loaded = program::<SocketFilter>(&mut ebpf, PARK).and_then(|filter| filter.load().map_err(at(PARK)));
    done.push((PARK, loaded));
    Ok(done)
}

/// Loads what a pod has for itself, over the pinned maps of all: the kernel looks at every path through the programs.
fn load_copy(loader: &mut EbpfLoader<'static>) -> Result<Ebpf, CaptureError> {
    let mut ebpf = loader.load(OBJECT)?;
    let inbound: &mut SkLookup = program(&mut ebpf, INBOUND)?;
    inbound.load().map_err(at(INBOUND))?;
    let filter: &mut SocketFilter = program(&mut ebpf, PARK)?;
    // Who attaches it loads it again if this fails, and tells why that does.
    if filter.load().is_ok() {
        // The programs hold what they use. Descriptors are needed of what is the pod's own.
        let own = [maps::NETNS, parking::RING, parking::ANSWERED];
        let others = ebpf.maps().map(|(name, _)| name.to_owned()).filter(|name| !own.contains(&&**name));
        for name in others.collect::<Vec<_>>() {
            ebpf.take_map(&name);
        }
    }
    Ok(ebpf)
}

/// Loads the programs over the maps pinned in a folder, which are made if they are not there, or over maps of their own.
fn loader(pinned: Option<&Path>) -> Result<EbpfLoader<'static>, CaptureError> {
    if OBJECT.is_empty() {
        return Err(CaptureError::NoPrograms);
    }
    let mut loader = EbpfLoader::new();
    // The programs read contexts and maps only: no kernel types to relocate against.
    loader.btf(None);
    if let Some(folder) = pinned {
        for map in maps::NAMES {
            loader.map_pin_path(map, folder.join(map));
        }
    }
    Ok(loader)
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
