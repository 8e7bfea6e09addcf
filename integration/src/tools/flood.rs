//! Floods: many connections that say nothing, half of something, or too much, and never finish.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs, aws_lc_rs::kx_group},
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::servers::listen_on;

const EINPROGRESS: i32 = 115;

/// How `flood` floods.
#[derive(Clone, Debug, clap::Args)]
pub struct Flood {
    /// Where to.
    #[arg(long)]
    pub to: SocketAddr,
    /// How many connections.
    #[arg(long)]
    pub connections: usize,
    /// What each of them says.
    #[arg(long)]
    pub says: Says,
    /// Keep them for this long after the last was opened, in milliseconds.
    #[arg(long, default_value_t = 3_000)]
    pub hold_ms: u64,
    /// Another for each one that is cut, until the time is over.
    #[arg(long)]
    pub again: bool,
    /// Wait for no connect: they count as connected, and as open, while their connects are under way.
    #[arg(long)]
    pub at_once: bool,
}

/// What a connection of a flood says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Says {
    /// Nothing.
    Nothing,
    /// The first hundred bytes of a ClientHello of an agent.
    HalfHello,
    /// A ClientHello of an agent byte by byte.
    HelloByBytes,
    /// A ClientHello as long as a record.
    HugeHello,
    /// A ClientHello of an agent in records of one byte.
    HelloInRecords,
    /// A ClientHello of an agent, and nothing more.
    Hello,
    /// The same with a post-quantum key share.
    PostQuantumHello,
    /// The same with no key share that the server can use, twice.
    RetriedHello,
    /// A ClientHello of an agent, and then records that are none.
    HelloAndGarbage,
    /// A ClientHello of an agent, and then two thousand records that mean nothing.
    HelloAndRecords,
    /// A ClientHello of somebody else.
    OtherHello,
    /// What begins like TLS and is not.
    LooksLikeTls,
    /// As much as the connection takes, and it never reads.
    Stuffing,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FloodTally {
    /// Connections that came about.
    pub connected: usize,
    /// Those that did not.
    pub refused: usize,
    /// Those that were open still at the end.
    pub open: usize,
    /// Bytes that the connections took.
    pub bytes: u64,
}

/// Opens all, says what is to be said, tells `flooding` on standard error, and holds them.
pub(super) fn run(how: &Flood) -> Result<FloodTally> {
    let (first, rest) = words(how.says)?;
    let mut tally = FloodTally::default();
    let mut held = Vec::new();
    open(how, how.connections, &first, &mut held, &mut tally);
    eprintln!("flooding");
    let end = Instant::now() + Duration::from_millis(how.hold_ms);
    let mut rest = rest.into_iter();
    let stuffing = vec![b'x'; 64 * 1024];
    while Instant::now() < end {
        if let Some(byte) = rest.next() {
            for stream in &mut held {
                // One that was cut is counted at the end.
                let _ = stream.write(&[byte]);
            }
        } else if how.says == Says::Stuffing {
            tally.bytes += stuff(&mut held, &stuffing);
            thread::sleep(Duration::from_millis(50));
        } else if how.again {
            held.retain_mut(is_open);
            let missing = how.connections - held.len();
            open(how, missing, &first, &mut held, &mut tally);
            thread::sleep(Duration::from_millis(20));
        } else {
            thread::sleep(Duration::from_millis(50));
        }
    }
    tally.open = match how.says {
        // Whether one that never reads has been cut, a write tells.
        Says::Stuffing => held.iter_mut().filter_map(|stream| stuffed(stream.write(b"x"))).count(),
        _ => held.iter_mut().filter_map(|stream| is_open(stream).then_some(())).count(),
    };
    Ok(tally)
}

fn open(how: &Flood, count: usize, first: &[u8], held: &mut Vec<TcpStream>, tally: &mut FloodTally) {
    for _ in 0..count {
        let connected = || {
            let mut stream = TcpStream::connect_timeout(&how.to, Duration::from_secs(2))?;
            stream.set_nodelay(true)?;
            stream.write_all(first)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let opened = if how.at_once { connecting(how.to) } else { connected() };
        match opened {
            Ok(stream) => {
                tally.connected += 1;
                held.push(stream);
            }
            Err(_) => tally.refused += 1,
        }
    }
}

fn connecting(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

fn is_open(stream: &mut TcpStream) -> bool {
    loop {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

fn stuffed(written: std::io::Result<usize>) -> Option<()> {
    match written {
        Ok(_) => Some(()),
        Err(error) => (error.kind() == ErrorKind::WouldBlock).then_some(()),
    }
}

/// Writes what each takes at this moment.
fn stuff(held: &mut [TcpStream], stuffing: &[u8]) -> u64 {
    let mut bytes = 0;
    for stream in held {
        while let Ok(written @ 1..) = stream.write(stuffing) {
            bytes += written as u64;
        }
    }
    bytes
}

/// Takes every connection, reads nothing from any, and writes to each what it takes.
pub(super) fn mute(listen: SocketAddr) -> Result<()> {
    let listener: TcpListener = listen_on(listen)?;
    listener.set_nonblocking(true)?;
    let (mut held, stuffing) = (Vec::new(), vec![b'x'; 64 * 1024]);
    loop {
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            held.push(stream);
        }
        stuff(&mut held, &stuffing);
        thread::sleep(Duration::from_millis(50));
    }
}

/// What is said at once, and what byte by byte.
fn words(says: Says) -> Result<(Vec<u8>, Vec<u8>)> {
    const AGENT: &[u8] = b"ambit/1";
    let usual = || hello(AGENT, &[kx_group::X25519]);
    let at_once = match says {
        Says::Nothing | Says::Stuffing => Vec::new(),
        Says::HalfHello => usual()?[..100].to_vec(),
        Says::HelloByBytes => return Ok((Vec::new(), usual()?)),
        Says::HugeHello => {
            let mut bytes = usual()?;
            bytes.resize(5 + 16_384, 0);
            bytes[3..5].copy_from_slice(&16_384_u16.to_be_bytes());
            bytes
        }
        Says::HelloInRecords => usual()?[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect(),
        Says::Hello => usual()?,
        Says::PostQuantumHello => hello(AGENT, &[kx_group::X25519MLKEM768, kx_group::X25519])?,
        Says::RetriedHello => hello(AGENT, &[kx_group::SECP384R1, kx_group::X25519])?.repeat(2),
        Says::HelloAndGarbage => {
            [usual()?, [[23, 3, 3, 1, 0].to_vec(), vec![0xa5; 256]].concat().repeat(8)].concat()
        }
        Says::HelloAndRecords => [usual()?, [20, 3, 3, 0, 1, 1].repeat(2_000)].concat(),
        Says::OtherHello => hello(b"h2", &[kx_group::X25519])?,
        Says::LooksLikeTls => [vec![22, 3, 1, 0, 200], vec![0xff; 200]].concat(),
    };
    Ok((at_once, Vec::new()))
}

/// A ClientHello that offers `protocol`, with a key share of the first of `groups`.
fn hello(protocol: &[u8], groups: &[&'static dyn SupportedKxGroup]) -> Result<Vec<u8>> {
    let provider = CryptoProvider { kx_groups: groups.to_vec(), ..aws_lc_rs::default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = "x.ambit".try_into().context("a server name")?;
    let mut bytes = Vec::new();
    ClientConnection::new(config.into(), name)?.write_tls(&mut bytes)?;
    Ok(bytes)
}
