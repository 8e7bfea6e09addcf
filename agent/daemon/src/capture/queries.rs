//! The agent's sockets for the DNS of one pod, each for one resolver of one family, and sockets to resolvers in the pod's name.
//!
//! The programs give each resolver that the pod asks a socket; what is said to it is left to others.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ambit_ebpf_common::{
    DNS_PORT, FAMILY_V4, FAMILY_V6, RESOLVER_SLOTS, ResolverKey, SOCKET_QUERIES, SOCKET_TUNNEL,
    Socket as SocketState, ip,
};
use nix::ifaddrs::getifaddrs;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::{maps::Maps, netns::Netns};

/// How many bytes of queries the kernel keeps while the agent is busy, as far as it may.
const QUEUE: usize = 1 << 20;
/// How long a resolver that is not asked keeps its socket where others want one.
pub(crate) const RESTED: Duration = Duration::from_secs(60);

/// How often the addresses of a pod's interfaces are looked at, at the most.
const LOOK: Duration = Duration::from_secs(1);

/// The ports of a pod's sockets, by the programs' keys.
type Ports = Arc<Mutex<BTreeMap<ResolverKey, u16>>>;

/// What a pod has of them.
#[derive(Debug)]
pub(super) struct Queries {
    ports: Ports,
    /// Those that nobody has taken to serve them.
    waiting: Vec<QuerySocket>,
}

impl Queries {
    /// Opens them; nothing leads there yet.
    pub(super) fn open(
        netns: &Netns,
        maps: &Arc<Maps>,
        ips: impl Iterator<Item = IpAddr>,
    ) -> io::Result<Self> {
        let ports = Ports::default();
        let mut waiting = Vec::new();
        for own in ips {
            for slot in 0..RESOLVER_SLOTS {
                let family = if own.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 };
                let key = ResolverKey { netns: netns.cookie(), family, slot };
                let socket = Arc::new(listen(netns, maps, own)?);
                let (netns, maps, ports) = (netns.clone(), maps.clone(), ports.clone());
                let interfaces = (HashSet::new(), None);
                let opened = QuerySocket { key, own, netns, maps, ports, socket, interfaces };
                opened.note()?;
                waiting.push(opened);
            }
        }
        Ok(Self { ports, waiting })
    }

    /// The ports, for the programs.
    pub(super) fn ports(&self) -> BTreeMap<ResolverKey, u16> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn take(&mut self) -> Vec<QuerySocket> {
        std::mem::take(&mut self.waiting)
    }
}

/// A socket that takes what a pod sends to one resolver.
#[derive(Debug)]
pub(crate) struct QuerySocket {
    key: ResolverKey,
    own: IpAddr,
    netns: Netns,
    maps: Arc<Maps>,
    ports: Ports,
    socket: Arc<UdpSocket>,
    /// Addresses of the pod's interfaces, and when they were looked at.
    interfaces: (HashSet<IpAddr>, Option<Instant>),
}

impl QuerySocket {
    /// Where queries come from, and answers go to.
    pub(crate) fn socket(&self) -> &Arc<UdpSocket> {
        &self.socket
    }

    /// Whether what comes from there comes from inside the pod: other pods reach the socket, too. What says from outside that it has an
    /// address of the pod is dropped as martian, or has its answer go to the pod.
    pub(crate) fn is_inside(&mut self, source: IpAddr) -> bool {
        let (known, looked) = &mut self.interfaces;
        if source == self.own || source.is_loopback() || known.contains(&source) {
            return true;
        }
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            *looked = Some(Instant::now());
            if let Ok(found) = self.netns.run(interfaces) {
                *known = found;
            }
        }
        known.contains(&source)
    }

    /// The resolver that it stands for; `None` if it does for none yet.
    pub(crate) fn resolver(&self) -> Option<SocketAddr> {
        self.maps.resolver(&self.key).map(|addr| SocketAddr::new(ip(addr), DNS_PORT))
    }

    /// A socket to a resolver as the pod would have it, from a port that nobody can guess.
    pub(crate) fn upstream(&self, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.netns.run(|| {
            let socket = udp(resolver.is_ipv6())?;
            mark(&self.maps, &socket, SOCKET_TUNNEL)?;
            socket.connect(&resolver.into())?;
            Ok(socket)
        })?;
        UdpSocket::from_std(socket.into())
    }

    /// Whether other resolvers of the family may want a socket and find none.
    pub(crate) fn is_wanted(&self) -> bool {
        (0..RESOLVER_SLOTS).all(|slot| self.maps.resolver(&ResolverKey { slot, ..self.key }).is_some())
    }

    /// Stands for no resolver any more. Who is connected to it is refused, and does not ask another resolver unknowingly.
    pub(crate) fn let_go(&mut self) -> io::Result<()> {
        let fresh = listen(&self.netns, &self.maps, self.own)?;
        self.maps.free_resolver(&self.key);
        self.socket = Arc::new(fresh);
        self.note()?;
        let port = self.socket.local_addr()?.port();
        self.maps.set_query_port(self.key, port).map_err(io::Error::other)
    }

    fn note(&self) -> io::Result<()> {
        let port = self.socket.local_addr()?.port();
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(self.key, port);
        Ok(())
    }
}

fn listen(netns: &Netns, maps: &Maps, own: IpAddr) -> io::Result<UdpSocket> {
    let socket = netns.run(|| {
        let socket = udp(own.is_ipv6())?;
        // Less is given where the machine allows no more.
        let _: io::Result<()> = socket.set_recv_buffer_size(QUEUE);
        mark(maps, &socket, SOCKET_QUERIES)?;
        socket.bind(&SocketAddr::new(own, 0).into())?;
        Ok(socket)
    })?;
    UdpSocket::from_std(socket.into())
}

/// The addresses of the namespace that the thread is in.
fn interfaces() -> io::Result<HashSet<IpAddr>> {
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    };
    Ok(getifaddrs()?.filter_map(|interface| interface.address.and_then(ip)).collect())
}

fn udp(v6: bool) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn mark(maps: &Maps, socket: &Socket, kind: u32) -> io::Result<()> {
    let state = SocketState { kind, ..SocketState::default() };
    maps.mark(socket, state).map_err(|error| io::Error::other(error.to_string()))
}
