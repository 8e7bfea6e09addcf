//! The barest relay: one thread, one epoll, no TLS, no policy, no telemetry. A pair of them is the least that any relay in user space
//! has to do, and so what others can be held against.
//!
//! The connection between the two is used again by one connection of an application after another, so that its bytes come in frames:
//! a length in front of them, or a word.

mod pair;

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream},
};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, SockRef, Socket, Type};

use self::pair::{Buffers, Pair, Socketed, Stand};
use super::servers;

/// Events that one wait brings.
const EVENTS: usize = 256;
/// Connections of either kind that are served; their tokens lie below those of listeners.
const LISTENERS_AT: u64 = 1 << 32;

/// How `relay` relays.
#[derive(Clone, Debug, clap::Args)]
pub struct Relay {
    /// Connections to the first go to the second: `out:LISTEN=TARGET` to another relay, `in:LISTEN=TARGET` from one, and
    /// `through:LISTEN=TARGET` from one application to another.
    #[arg(required = true, value_parser = Way::parse)]
    ways: Vec<Way>,
}

/// One way through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    kind: Kind,
    listen: SocketAddrV4,
    target: SocketAddrV4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// To another relay.
    Out,
    /// From another relay.
    In,
    /// Between two applications.
    Through,
}

impl Way {
    fn parse(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(':').context("it wants KIND:LISTEN=TARGET")?;
        let (listen, target) = rest.split_once('=').context("it wants KIND:LISTEN=TARGET")?;
        let kind = match kind {
            "out" => Kind::Out,
            "in" => Kind::In,
            "through" => Kind::Through,
            _ => anyhow::bail!("{kind}: there are out, in and through"),
        };
        let address =
            |text: &str| text.parse().with_context(|| format!("{text} is no IPv4 address and port"));
        Ok(Self { kind, listen: address(listen)?, target: address(target)? })
    }
}

/// Relays for ever.
pub(super) fn run(args: &Relay) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut listeners = Vec::new();
    for (token, way) in (LISTENERS_AT..).zip(&args.ways) {
        let listener = servers::listen_on(SocketAddr::V4(way.listen))?;
        // Inherited by what it accepts.
        SockRef::from(&listener).set_tcp_nodelay(true)?;
        listener.set_nonblocking(true)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        listeners.push((*way, listener));
    }
    let mut looped = Loop { epoll, listeners, pairs: Vec::new(), free: Vec::new(), rested: HashMap::new() };
    let mut buffers = Buffers::default();
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let count = match looped.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            count => count?,
        };
        for event in &events[..count] {
            looped.serve(event, &mut buffers);
        }
    }
}

struct Loop {
    epoll: Epoll,
    listeners: Vec<(Way, TcpListener)>,
    /// Two tokens each: that of the application's socket, and that of the other one.
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    /// Connections to other relays, by way, which wait for the next application.
    rested: HashMap<usize, Vec<usize>>,
}

impl Loop {
    fn serve(&mut self, event: &EpollEvent, buffers: &mut Buffers) {
        if let Some(way) = event.data().checked_sub(LISTENERS_AT) {
            // One that fails is one that has gone again.
            return drop(self.accept(way as usize, buffers));
        }
        let at = (event.data() / 2) as usize;
        let Some(pair) = self.pairs.get_mut(at).and_then(Option::as_mut) else { return };
        let side = if event.data().is_multiple_of(2) { Socketed::App } else { Socketed::Other };
        pair.told(side, event.events());
        self.pump(at, buffers);
    }

    /// Moves what can be moved at a place.
    fn pump(&mut self, at: usize, buffers: &mut Buffers) {
        loop {
            let Some(pair) = &mut self.pairs[at] else { return };
            match pair.pump(buffers) {
                Ok(Stand::Waits) => return,
                Ok(Stand::Opens) => {
                    let target = self.listeners[pair.way].0.target;
                    let opened = dial(target).and_then(|app| {
                        self.epoll.add(&app, both(2 * at as u64))?;
                        Ok(app)
                    });
                    match opened {
                        Ok(app) => pair.open(app),
                        Err(_) => return self.forget(at),
                    }
                }
                Ok(Stand::Rests) => {
                    if self.listeners[pair.way].0.kind == Kind::Out {
                        self.rested.entry(pair.way).or_default().push(at);
                    }
                    return;
                }
                Ok(Stand::Over) | Err(_) => return self.forget(at),
            }
        }
    }

    fn accept(&mut self, way: usize, buffers: &mut Buffers) -> io::Result<()> {
        let (Way { kind, target, .. }, listener) = &self.listeners[way];
        let (kind, target) = (*kind, *target);
        let (accepted, _) = listener.accept()?;
        accepted.set_nonblocking(true)?;
        let at = match kind {
            Kind::In => {
                let at = self.place();
                self.epoll.add(&accepted, both(2 * at as u64 + 1))?;
                self.pairs[at] = Some(Pair::from_relay(way, accepted));
                at
            }
            Kind::Out if let Some(at) = self.rested.get_mut(&way).and_then(Vec::pop) => {
                self.epoll.add(&accepted, both(2 * at as u64))?;
                if let Some(pair) = &mut self.pairs[at] {
                    pair.open(accepted);
                }
                at
            }
            Kind::Out | Kind::Through => {
                let other = dial(target)?;
                let at = self.place();
                self.epoll.add(&accepted, both(2 * at as u64))?;
                self.epoll.add(&other, both(2 * at as u64 + 1))?;
                self.pairs[at] = Some(Pair::from_application(way, accepted, other, kind == Kind::Out));
                at
            }
        };
        self.pump(at, buffers);
        Ok(())
    }

    fn place(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        })
    }

    fn forget(&mut self, at: usize) {
        if let Some(pair) = self.pairs[at].take() {
            if let Some(rested) = self.rested.get_mut(&pair.way) {
                rested.retain(|other| *other != at);
            }
            self.free.push(at);
        }
    }
}

/// Begins to connect.
fn dial(target: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// All that can happen to a socket, told once.
fn both(token: u64) -> EpollEvent {
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    EpollEvent::new(flags, token)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{Ipv4Addr, Shutdown},
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    /// Answers each connection with what it has said, once it has ended its direction.
    fn answer_all(listener: &TcpListener) {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            });
        }
    }

    fn free() -> SocketAddrV4 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port())
    }

    fn start(kind: Kind, listen: SocketAddrV4, target: SocketAddrV4) {
        thread::spawn(move || run(&Relay { ways: vec![Way { kind, listen, target }] }));
        let limit = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(listen).is_err() {
            assert!(Instant::now() < limit, "{listen} does not listen");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn bytes_and_ends_pass_one_connection_after_another_and_several_at_a_time() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = SocketAddrV4::new(Ipv4Addr::LOCALHOST, server.local_addr().unwrap().port());
        thread::spawn(move || answer_all(&server));
        let (wire, out, through) = (free(), free(), free());
        start(Kind::In, wire, target);
        start(Kind::Out, out, wire);
        start(Kind::Through, through, target);
        let exchange = |to: SocketAddrV4, len: usize| {
            let sent: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251) as u8).collect();
            let mut client = TcpStream::connect(to).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            client.write_all(&sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut received = Vec::new();
            client.read_to_end(&mut received).unwrap();
            assert!(received == sent, "{} of {len} bytes came back from {to}", received.len());
        };
        for to in [out, through] {
            for len in [0, 1, 5, 4096, 3_000_000] {
                exchange(to, len);
            }
            thread::scope(|scope| {
                for len in 0..20 {
                    scope.spawn(move || exchange(to, len * 50_000));
                }
            });
        }
    }

    #[test]
    fn a_way_has_a_kind_and_two_addresses() {
        let way = Way::parse("out:127.0.0.1:80=198.18.0.1:81").unwrap();
        assert_eq!((way.kind, way.listen.port(), way.target.port()), (Kind::Out, 80, 81));
        for wrong in
            ["127.0.0.1:80=198.18.0.1:81", "up:127.0.0.1:80=198.18.0.1:81", "in:127.0.0.1:80", "in:a=b"]
        {
            assert!(Way::parse(wrong).is_err(), "{wrong}");
        }
    }
}
