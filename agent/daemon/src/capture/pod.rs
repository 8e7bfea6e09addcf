//! One enrolled pod: its namespace, the agent's listeners in it, and dials from inside it.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd, BorrowedFd},
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ambit_core::model::{ClientAddr, OriginalDst, PodAddr};
use ambit_ebpf_common::{
    CAPTURE_DNS, CAPTURE_EVERYTHING, Flow, OriginKey, Pod, ResolverKey, SOCKET_DELIVERY, SOCKET_TUNNEL,
    Socket as SocketState, addr, ip,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    select,
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{
    CaptureError, PodSpec,
    liveness::{self, Patience},
    maps::Maps,
    netns::Netns,
    parking::{self, Client, Parking},
    queries::{Queries, QuerySocket},
    routing, socket,
    spares::Spares,
};

/// How many dials to the applications of one pod may wait to be taken at a time. Each has a place in a map that all pods of
/// the node share.
const DIALS: usize = 512;
/// How many addresses beside its own a pod is known to be called at.
const OTHER_ADDRESSES: usize = 64;

/// How long a dial to another pod's agent goes unanswered before another port is tried beside it.
const SECOND_PORT: Duration = Duration::from_millis(500);

/// A connection that the programs handed to the agent. Dropping its stream resets it until
/// [`end_cleanly`](super::end_cleanly).
#[derive(Debug)]
pub(crate) enum Accepted {
    /// From an application in the pod.
    Outbound {
        /// The application.
        client: Client,
        /// The application's own address.
        source: SocketAddr,
        /// Where it wanted to go.
        original_dst: OriginalDst,
    },
    /// From outside, to an application in the pod.
    Inbound {
        /// The client's end: a tunnel, or plaintext.
        client: Client,
        /// Who connects.
        source: ClientAddr,
        /// The pod's address and the application's port.
        destination: PodAddr,
    },
    /// Where captured connections come, by nobody who was captured.
    Stray {
        /// Who connected; it has been reset.
        source: SocketAddr,
    },
}

/// What connections of a pod dial through.
pub(crate) trait Dial: Send + Sync + 'static {
    /// The pod's UID.
    fn uid(&self) -> &Arc<str>;

    /// Connects to another pod's agent from `source`, an address of this pod's.
    fn dial_tunnel(&self, source: IpAddr, dst: PodAddr)
    -> impl Future<Output = io::Result<TcpStream>> + Send;

    /// Connects to `dst` in plaintext from inside the pod, as the application itself would have. Dropping the connection
    /// resets it until [`end_cleanly`](super::end_cleanly).
    fn dial_plain(
        &self,
        source: IpAddr,
        dst: SocketAddr,
    ) -> impl Future<Output = io::Result<TcpStream>> + Send;

    /// Connects to the pod's application in the name of `client`, which `has_spoken` if the first bytes for the application are
    /// written at once: then the application is told of the connection together with them. Dropping the connection resets it until
    /// [`end_cleanly`](super::end_cleanly).
    fn deliver(
        &self,
        client: ClientAddr,
        app: PodAddr,
        has_spoken: bool,
    ) -> impl Future<Output = io::Result<TcpStream>> + Send;

    /// A connection to where one of the pod's wanted to go, or to the pod's own application, came about.
    fn answered(&self, destination: SocketAddr);

    /// One failed, or ended badly.
    fn unanswered(&self, destination: SocketAddr);

    /// Whether DNS of the pod is the agent's affair.
    fn captures_dns(&self) -> bool {
        false
    }

    /// How long the application at the other end of `stream` has its kernel wait, if it has said so.
    fn patience(&self, _stream: &TcpStream) -> Option<Patience> {
        None
    }

    /// Whether the pod has been let go, or enrolled anew in another network namespace.
    fn is_released(&self) -> bool {
        false
    }

    /// Ends once the pod has been let go, or enrolled anew in another network namespace: what runs may finish, and nothing
    /// begins here any more.
    fn until_released(&self) -> impl Future<Output = ()> + Send;
}

/// An enrolled pod's network.
#[derive(Debug)]
pub(crate) struct PodNet {
    uid: Arc<str>,
    netns: Netns,
    maps: Arc<Maps>,
    listeners: Vec<(SocketAddr, TcpListener)>,
    parking: OnceLock<Parking>,
    dials: Semaphore,
    /// For dials to the applications.
    spares: Spares,
    /// Addresses beside the pod's own at which it was called, and for whose interfaces there is a route.
    others: Mutex<HashSet<IpAddr>>,
    released: watch::Sender<bool>,
    /// All that it dials is captured.
    captures_everything: AtomicBool,
    /// Where its DNS goes, if that is captured.
    queries: Mutex<Option<Queries>>,
}

impl PodNet {
    pub(super) async fn open(spec: &PodSpec, maps: Arc<Maps>) -> Result<Self, CaptureError> {
        let failed = |step: String| {
            move |source| CaptureError::Netns { netns: spec.netns.path().to_owned(), step, source }
        };
        let netns = spec.netns.clone();
        routing::prepare(&netns, spec.v4.is_some(), spec.v6.is_some())
            .await
            .map_err(failed("set the rule, route and sysctls of capture".into()))?;
        let mut listeners = Vec::new();
        for address in [spec.v4.map(IpAddr::from), spec.v6.map(IpAddr::from)].into_iter().flatten() {
            let bound = netns
                .run(|| socket::listen(address))
                .and_then(|socket| TcpListener::from_std(socket.into()))
                .and_then(|listener| Ok((listener.local_addr()?, listener)))
                .map_err(failed(format!("listen on the pod's address {address}")))?;
            listeners.push(bound);
        }
        let (dials, released) = (Semaphore::new(DIALS), watch::Sender::new(false));
        let (parking, others) = (OnceLock::new(), Mutex::default());
        let (captures_everything, queries) = (AtomicBool::new(false), Mutex::new(None));
        let uid = spec.uid.clone();
        Ok(Self {
            uid,
            netns,
            maps,
            listeners,
            parking,
            dials,
            spares: Spares::default(),
            others,
            released,
            captures_everything,
            queries,
        })
    }

    /// The pod's UID.
    pub(super) fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    /// Whether all that it dials is to be captured; whether that is another answer than before.
    pub(super) fn set_captures_everything(&self, everything: bool) -> bool {
        self.captures_everything.swap(everything, Ordering::Relaxed) != everything
    }

    /// Whether its DNS is to be captured; whether that is another answer than before. Nothing leads to the agent before the programs
    /// know of it.
    pub(super) fn set_captures_dns(&self, dns: bool) -> Result<bool, CaptureError> {
        let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        if queries.is_some() == dns {
            return Ok(false);
        }
        *queries = if dns {
            let opened = Queries::open(&self.netns, &self.maps, self.ips());
            Some(opened.map_err(|source| CaptureError::Netns {
                netns: self.netns.path().to_owned(),
                step: "open sockets for DNS".into(),
                source,
            })?)
        } else {
            None
        };
        Ok(true)
    }

    /// Whether its DNS is captured.
    pub(crate) fn captures_dns(&self) -> bool {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The sockets for its DNS, once: whoever has them serves them.
    pub(crate) fn take_queries(&self) -> Vec<QuerySocket> {
        let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        queries.as_mut().map(Queries::take).unwrap_or_default()
    }

    /// The ports of those.
    pub(super) fn query_ports(&self) -> BTreeMap<ResolverKey, u16> {
        let queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        queries.as_ref().map(Queries::ports).unwrap_or_default()
    }

    pub(super) fn retire(&self) {
        self.released.send_replace(true);
    }

    /// The cookie of its network namespace.
    pub(crate) fn cookie(&self) -> u64 {
        self.netns.cookie()
    }

    /// How many listeners there are, one an address family.
    pub(crate) fn listeners(&self) -> usize {
        self.listeners.len()
    }

    /// The next connection on the `index`-th listener. Errors are those of the host (file descriptors, memory), worth a
    /// pause.
    pub(crate) async fn accept(&self, index: usize) -> io::Result<Accepted> {
        let (own, listener) = &self.listeners[index];
        loop {
            let (stream, source) = listener.accept().await?;
            // A client that has gone again has no address.
            let Ok(local) = stream.local_addr() else {
                continue;
            };
            let (source, local) = (canonical(source), canonical(local));
            // From the pod to itself the programs lead nothing here but what was captured.
            let captured = local == *own || source.ip() == local.ip() || source.ip().is_loopback();
            let original_dst = captured.then(|| self.original_dst(source, local.port()));
            let stream = match self.parking.get() {
                None => stream,
                Some(parking) => {
                    socket::detach_filter(&stream);
                    let Some(stream) = parking.hand_over(stream, source, local) else { continue };
                    stream
                }
            };
            let client = Client::Connected(stream);
            return Ok(match original_dst {
                None => Accepted::Inbound { client, source: ClientAddr(source), destination: PodAddr(local) },
                Some(Some(original_dst)) => Accepted::Outbound { client, source, original_dst },
                Some(None) => Accepted::Stray { source },
            });
        }
    }

    /// The next client that waits for an answer.
    pub(crate) async fn parked(self: &Arc<Self>) -> Accepted {
        parking::next(self, &self.parking).await
    }

    pub(super) fn parking(&self) -> Option<&Parking> {
        self.parking.get()
    }

    /// Has clients wait from now on.
    pub(super) fn park(&self, parking: Parking, filter: BorrowedFd<'_>) -> io::Result<()> {
        if self.parking.set(parking).is_ok() {
            for (_, listener) in &self.listeners {
                socket::attach_filter(listener.as_fd(), filter)?;
            }
        }
        Ok(())
    }

    /// Whether an application waits at `source` to be connected to where this port leads.
    pub(super) fn is_connecting(&self, source: SocketAddr, port: u16) -> bool {
        self.maps.has_origin(&self.origin_key(source, port))
    }

    async fn dial(&self, source: IpAddr, dst: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.netns.run(|| {
            let socket = socket::tcp(dst.is_ipv6())?;
            socket.set_tcp_nodelay(true)?;
            socket::reset_on_drop(&socket);
            socket::bind_without_port(&socket, source)?;
            Ok(socket)
        })?;
        self.mark(&socket, SOCKET_TUNNEL)?;
        TcpSocket::from_std_stream(socket.into()).connect(dst).await
    }

    /// Has the answers of applications that are bound to the interface of `called` stay inside: it may have come later than the
    /// agent.
    async fn know_interface(&self, called: IpAddr) {
        let known = || self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ips().any(|own| own == called) || known().contains(&called) {
            return;
        }
        let (v4, v6) = (self.ips().any(|ip| ip.is_ipv4()), self.ips().any(|ip| ip.is_ipv6()));
        match routing::prepare_interfaces(&self.netns, v4, v6).await {
            Ok(()) => {
                let mut known = known();
                if known.len() >= OTHER_ADDRESSES {
                    known.clear();
                }
                known.insert(called);
            }
            Err(error) => {
                tracing::debug!(%error, %called, pod = %self.uid, "no routes for a pod's interfaces")
            }
        }
    }

    async fn try_deliver(
        &self,
        client: ClientAddr,
        app: PodAddr,
        has_spoken: bool,
        attempt: u32,
    ) -> io::Result<TcpStream> {
        let v6 = client.0.is_ipv6();
        let socket = self.spares.take(v6, Instant::now(), |count| self.delivery_sockets(v6, count))?;
        let own = socket::bind_delivery(&socket, client.0, attempt)?;
        if has_spoken {
            socket::end_handshake_with_data(&socket);
        }
        let recorded = self.maps.record(self.flow(canonical(own), app))?;
        let stream = socket::connect_nearby(socket, app.0).await?;
        if has_spoken {
            // The application's end does not stand yet.
            recorded.leave();
        }
        Ok(stream)
    }

    /// So many sockets inside the pod, ready to be bound.
    fn delivery_sockets(&self, v6: bool, count: usize) -> io::Result<Vec<socket2::Socket>> {
        let sockets: Vec<_> = self.netns.run(|| (0..count).map(|_| socket::transparent(v6)).collect())?;
        sockets.iter().try_for_each(|socket| self.mark(socket, SOCKET_DELIVERY))?;
        Ok(sockets)
    }

    /// Lets go of what it keeps for connections that do not come.
    pub(super) fn tidy(&self, now: Instant) {
        self.spares.tidy(now);
    }

    /// A connection from `source` to the application, as the inbound hook sees it.
    fn flow(&self, source: SocketAddr, app: PodAddr) -> Flow {
        Flow {
            netns: self.netns.cookie(),
            remote: addr(source.ip()),
            local: addr(app.0.ip()),
            remote_port: u32::from(source.port()),
            local_port: u32::from(app.0.port()),
        }
    }

    /// Where the programs find the agent in this pod.
    pub(super) fn entry(&self) -> Pod {
        let mut entry = Pod::default();
        if self.captures_everything.load(Ordering::Relaxed) {
            entry.captures |= CAPTURE_EVERYTHING;
        }
        if self.captures_dns() {
            entry.captures |= CAPTURE_DNS;
        }
        for (own, _) in &self.listeners {
            let (ip, port) = match own {
                SocketAddr::V4(_) => (&mut entry.v4, &mut entry.v4_port),
                SocketAddr::V6(_) => (&mut entry.v6, &mut entry.v6_port),
            };
            *ip = addr(own.ip());
            *port = own.port();
        }
        entry
    }

    /// The addresses at which it is captured.
    pub(super) fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.listeners.iter().map(|(own, _)| own.ip())
    }

    pub(super) fn netns(&self) -> &Netns {
        &self.netns
    }

    pub(super) fn listener_fds(&self) -> impl Iterator<Item = (bool, i32)> + '_ {
        self.listeners.iter().map(|(own, listener)| (own.is_ipv6(), listener.as_raw_fd()))
    }

    fn original_dst(&self, source: SocketAddr, port: u16) -> Option<OriginalDst> {
        let origin = self.maps.take_origin(&self.origin_key(source, port))?;
        Some(OriginalDst(SocketAddr::new(ip(origin.addr), u16::try_from(origin.port).ok()?)))
    }

    fn origin_key(&self, source: SocketAddr, to: u16) -> OriginKey {
        OriginKey {
            netns: self.netns.cookie(),
            addr: addr(source.ip()),
            port: u32::from(source.port()),
            to: u32::from(to),
        }
    }

    fn mark(&self, socket: &socket2::Socket, kind: u32) -> io::Result<()> {
        let state = SocketState { kind, ..SocketState::default() };
        self.maps.mark(socket, state).map_err(|error| io::Error::other(error.to_string()))
    }
}

impl Dial for PodNet {
    fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    /// From a port that the pod has free for this destination. The other end may have a connection in the client's name from
    /// the same port, and then hears nothing of this one: another port is tried as well.
    async fn dial_tunnel(&self, source: IpAddr, dst: PodAddr) -> io::Result<TcpStream> {
        // One that nobody waits for any more is reset: closed without a byte, it would be a client in plaintext that came and went.
        let mut first = pin!(self.dial(source, dst.0));
        let dialled = match timeout(SECOND_PORT, &mut first).await {
            Ok(dialled) => dialled,
            Err(_) => select! {
                dialled = &mut first => dialled,
                dialled = self.dial(source, dst.0) => dialled,
            },
        }?;
        socket::end_cleanly(&dialled);
        liveness::tune_tunnel(&dialled)?;
        Ok(dialled)
    }

    async fn dial_plain(&self, source: IpAddr, dst: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.dial(source, dst).await?;
        socket::ready_for_application(&stream)?;
        Ok(stream)
    }

    async fn deliver(&self, client: ClientAddr, app: PodAddr, has_spoken: bool) -> io::Result<TcpStream> {
        let _place = self.dials.acquire().await.map_err(io::Error::other)?;
        self.know_interface(app.0.ip()).await;
        let mut attempt = 0;
        let stream = loop {
            match self.try_deliver(client, app, has_spoken, attempt).await {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::AddrInUse
                            | io::ErrorKind::AddrNotAvailable
                            | io::ErrorKind::AlreadyExists
                    ) && attempt < socket::DELIVERY_ATTEMPTS =>
                {
                    attempt += 1;
                }
                result => break result?,
            }
        };
        socket::reset_on_drop(&stream);
        Ok(stream)
    }

    fn answered(&self, destination: SocketAddr) {
        if let Some(parking) = self.parking.get() {
            parking.answered().yes(destination);
        }
    }

    fn unanswered(&self, destination: SocketAddr) {
        if let Some(parking) = self.parking.get() {
            parking.answered().no(destination);
        }
    }

    fn captures_dns(&self) -> bool {
        Self::captures_dns(self)
    }

    fn patience(&self, stream: &TcpStream) -> Option<Patience> {
        let (application, agent) = (stream.peer_addr().ok()?, stream.local_addr().ok()?);
        let (local, remote) = (canonical(application), canonical(agent));
        let told = self.maps.patience(&Flow {
            netns: self.netns.cookie(),
            remote: addr(remote.ip()),
            local: addr(local.ip()),
            remote_port: u32::from(remote.port()),
            local_port: u32::from(local.port()),
        })?;
        Some(Patience::told(&told))
    }

    fn is_released(&self) -> bool {
        *self.released.borrow()
    }

    async fn until_released(&self) {
        // The sender lives as long as `self`.
        let _ = self.released.subscribe().wait_for(|released| *released).await;
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
