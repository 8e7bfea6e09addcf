//! SYNs that the filter on a pod's listeners has taken off: each waits until somebody knows what is to be answered.
//!
//! Promises that a SYN and its retransmissions are one, that what waits is bounded, and that a client which gives up is
//! noticed. What the answer is, others decide.

mod answered;

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::SocketAddr,
    ptr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use ambit_core::model::{ClientAddr, OriginalDst, PodAddr};
use ambit_ebpf_common::{Knock, Origin, ip};
use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, MapData, MapError, RingBuf},
};
use socket2::SockAddr;
use tokio::{
    io::unix::AsyncFd,
    net::TcpStream,
    select,
    sync::oneshot,
    time::{sleep, timeout},
};

use self::answered::Answered;
use super::{
    CaptureError,
    pod::{Accepted, PodNet},
    segment::Syn,
    socket,
};

/// The maps of one copy of the pods' programs: what waits, and what has answered lately.
pub(super) const RING: &str = "PARKED";
pub(super) const ANSWERED: &str = answered::MAP;

/// SYNs of one pod that wait at a time. A further one is lost, and comes again.
const WAITING: usize = 2048;
/// How long a SYN that was sent again may take to become a connection. The client's next retransmission has it sent once
/// more, and may come a second later.
const ADMISSION: Duration = Duration::from_secs(3);
/// How often it is looked whether the application still wants to connect.
const GIVEN_UP: Duration = Duration::from_millis(200);

/// The client's end of a connection that has come.
#[derive(Debug)]
pub(crate) enum Client {
    /// It is connected.
    Connected(TcpStream),
    /// It waits.
    Waiting(Parked),
}

/// What a client that waits may be told, other than that it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Its connect fails with ECONNREFUSED.
    Refused,
    /// Its connect fails with EHOSTUNREACH.
    Unreachable,
    /// Nothing: it tries again, for as long as it likes.
    Silence,
}

impl Client {
    /// Whether it waits for an answer.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self, Self::Waiting(_))
    }

    /// Whether it is connected, and has sent bytes that nobody has read.
    pub(crate) fn has_spoken(&self) -> bool {
        match self {
            Self::Connected(stream) => socket::has_bytes(stream),
            Self::Waiting(_) => false,
        }
    }

    /// Ends once it does not wait any more; never if it is connected.
    pub(crate) async fn until_given_up(&mut self) {
        match self {
            Self::Connected(_) => std::future::pending().await,
            Self::Waiting(parked) => {
                parked.until_given_up().await;
                parked.given_up = true;
            }
        }
    }

    /// Whether it does not wait any more, as far as that was noticed.
    pub(crate) fn has_given_up(&self) -> bool {
        matches!(self, Self::Waiting(parked) if parked.given_up)
    }

    /// The connection.
    pub(crate) async fn admit(self) -> io::Result<TcpStream> {
        match self {
            Self::Connected(stream) => Ok(stream),
            Self::Waiting(parked) => parked.admit().await,
        }
    }

    /// Ends what it wanted; a client that is connected is reset.
    pub(crate) fn answer(self, answer: Answer) {
        if let Self::Waiting(parked) = self {
            let packet = match answer {
                Answer::Refused => parked.syn.reset(),
                Answer::Unreachable => parked.syn.unreachable(),
                Answer::Silence => return,
            };
            if let Err(error) = parked.send(&packet, parked.syn.remote) {
                tracing::debug!(%error, client = %parked.syn.remote, "a client that waits cannot be answered");
            }
        }
    }
}

/// A client that waits. Dropping it leaves it without an answer.
#[derive(Debug)]
pub(crate) struct Parked {
    pod: Arc<PodNet>,
    syn: Syn,
    serial: u64,
    accepted: oneshot::Receiver<TcpStream>,
    /// It came in by itself, while its destination answered others.
    stream: Option<TcpStream>,
    /// It does not wait any more.
    given_up: bool,
}

impl Parked {
    async fn until_given_up(&mut self) {
        let captured = self.syn.remote.ip() == self.syn.local.ip();
        while self.stream.is_none() {
            select! {
                accepted = &mut self.accepted => match accepted {
                    Ok(stream) => self.stream = Some(stream),
                    // Another connection has its place.
                    Err(_) => return,
                },
                // Of clients elsewhere nothing is known.
                () = sleep(GIVEN_UP), if captured => {
                    if !self.pod.is_connecting(self.syn.remote, self.syn.local.port()) {
                        // It may have been accepted this very moment.
                        match timeout(GIVEN_UP, &mut self.accepted).await {
                            Ok(Ok(stream)) => self.stream = Some(stream),
                            _ => return,
                        }
                    }
                }
            }
        }
        std::future::pending().await
    }

    async fn admit(mut self) -> io::Result<TcpStream> {
        if let Some(stream) = self.stream.take() {
            return Ok(stream);
        }
        if let Some(parking) = self.pod.parking() {
            parking.admitted(&self.syn, self.serial);
        }
        self.send(&self.syn.again(), self.syn.local)?;
        match timeout(ADMISSION, &mut self.accepted).await {
            Ok(Ok(stream)) => Ok(stream),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn send(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        self.pod.parking().map_or_else(|| Err(io::ErrorKind::NotConnected.into()), |it| it.send(packet, to))
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(parking) = self.pod.parking() {
            parking.forget(&self.syn, self.serial);
        }
    }
}

/// The SYNs of one pod.
pub(super) struct Parking {
    ring: tokio::sync::Mutex<AsyncFd<RingBuf<MapData>>>,
    raw: [Option<socket2::Socket>; 2],
    waiting: Mutex<Waiting>,
    answered: Answered,
}

#[derive(Default)]
struct Waiting {
    clients: HashMap<(SocketAddr, SocketAddr), Waiter>,
    serial: u64,
}

struct Waiter {
    serial: u64,
    sequence: u32,
    admitted: bool,
    accepted: oneshot::Sender<TcpStream>,
}

impl std::fmt::Debug for Parking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parking").finish_non_exhaustive()
    }
}

impl Parking {
    /// Over the maps of the pod's own copy of the programs; must run inside the pod's network namespace, and a tokio runtime.
    pub(super) fn open(ebpf: &mut Ebpf, v4: bool, v6: bool) -> Result<Self, CaptureError> {
        let map = |name: &'static str, ebpf: &mut Ebpf| ebpf.take_map(name).ok_or(CaptureError::NoPrograms);
        let at = |map: &'static str| move |source: MapError| CaptureError::Map { map, source };
        let ring = RingBuf::try_from(map(RING, ebpf)?).map_err(at(RING))?;
        let answered = BpfHashMap::try_from(map(answered::MAP, ebpf)?).map_err(at(answered::MAP))?;
        let failed = |step| move |source| CaptureError::Host { step, path: "raw sockets".into(), source };
        // SAFETY: the ring owns its descriptor and keeps it open for as long as it is registered.
        let ring = unsafe { AsyncFd::register(ring) }
            .map_err(|error| failed("wait for parked connections on")(error.into()))?;
        let raw = |wanted: bool, v6| wanted.then(|| socket::raw(v6)).transpose().map_err(failed("open"));
        Ok(Self {
            ring: tokio::sync::Mutex::new(ring),
            raw: [raw(v4, false)?, raw(v6, true)?],
            waiting: Mutex::default(),
            answered: Answered::new(answered),
        })
    }

    /// What answers, for the filter: where several have just been answered nobody needs to wait.
    pub(super) fn answered(&self) -> &Answered {
        &self.answered
    }

    /// The next SYN, and where its application wanted to go if it is one of the pod's own.
    async fn next(&self) -> (Syn, Option<Origin>) {
        let mut ring = self.ring.lock().await;
        loop {
            while let Some(item) = ring.get_mut().next() {
                let Some(knock) = read(&item) else { continue };
                if let Some(syn) = Syn::new(&knock) {
                    return (syn, (knock.origin.port != 0).then_some(knock.origin));
                }
            }
            match ring.readable_mut().await {
                Ok(mut ready) => ready.clear_ready(),
                // The runtime ends.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// A place for a SYN that is not here already; a serial number and where its connection will come.
    fn enter(&self, syn: &Syn) -> Option<(u64, oneshot::Receiver<TcpStream>)> {
        let mut waiting = self.waiting();
        let full = waiting.clients.len() >= WAITING;
        waiting.serial += 1;
        let serial = waiting.serial;
        let (accepted, receiver) = oneshot::channel();
        let waiter = Waiter { serial, sequence: syn.sequence(), admitted: false, accepted };
        match waiting.clients.entry((syn.remote, syn.local)) {
            Entry::Occupied(known) if known.get().sequence == waiter.sequence => {
                // Ours may have been lost.
                if known.get().admitted {
                    let _: io::Result<()> = self.send(&syn.again(), syn.local);
                }
                return None;
            }
            // The port is another socket's by now.
            Entry::Occupied(mut known) => drop(known.insert(waiter)),
            Entry::Vacant(_) if full => return None,
            Entry::Vacant(place) => drop(place.insert(waiter)),
        }
        Some((serial, receiver))
    }

    fn admitted(&self, syn: &Syn, serial: u64) {
        if let Some(waiter) = self.waiting().clients.get_mut(&(syn.remote, syn.local))
            && waiter.serial == serial
        {
            waiter.admitted = true;
        }
    }

    fn forget(&self, syn: &Syn, serial: u64) {
        if let Entry::Occupied(waiter) = self.waiting().clients.entry((syn.remote, syn.local))
            && waiter.get().serial == serial
        {
            waiter.remove();
        }
    }

    /// Gives a connection that has been accepted to who waits for it, or back.
    pub(super) fn hand_over(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        local: SocketAddr,
    ) -> Option<TcpStream> {
        let waiter = {
            let mut waiting = self.waiting();
            if waiting.clients.is_empty() {
                return Some(stream);
            }
            waiting.clients.remove(&(remote, local))
        };
        match waiter {
            Some(waiter) => waiter.accepted.send(stream).err(),
            None => Some(stream),
        }
    }

    fn send(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        let socket = self.raw[usize::from(to.is_ipv6())].as_ref().ok_or(io::ErrorKind::NotConnected)?;
        // Raw sockets have no ports.
        socket.send_to(packet, &SockAddr::from(SocketAddr::new(to.ip(), 0))).map(drop)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Each critical section is a step of the map: a panic cannot leave it half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next client of `pod` that waits; never ends where none is made to wait.
pub(super) async fn next(pod: &Arc<PodNet>, parking: &OnceLock<Parking>) -> Accepted {
    let Some(parking) = parking.get() else {
        return std::future::pending().await;
    };
    loop {
        let (syn, origin) = parking.next().await;
        let Some((serial, accepted)) = parking.enter(&syn) else { continue };
        let (source, destination) = (syn.remote, syn.local);
        let client = Client::Waiting(Parked {
            pod: pod.clone(),
            syn,
            serial,
            accepted,
            stream: None,
            given_up: false,
        });
        let Some(origin) = origin else {
            return Accepted::Inbound {
                client,
                source: ClientAddr(source),
                destination: PodAddr(destination),
            };
        };
        if let Ok(port) = u16::try_from(origin.port) {
            let original_dst = OriginalDst(SocketAddr::new(ip(origin.addr), port));
            return Accepted::Outbound { client, source, original_dst };
        }
    }
}

fn read(record: &[u8]) -> Option<Knock> {
    // SAFETY: the record has as many bytes, and a `Knock` is integers only: every bit pattern is a value.
    (record.len() >= size_of::<Knock>()).then(|| unsafe { ptr::read_unaligned(record.as_ptr().cast()) })
}
