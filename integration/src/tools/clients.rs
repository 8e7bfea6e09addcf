//! Clients: one connection in a particular way, and load in numbers.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Churn, Connect, FirstBytes, IO_LIMIT, MESSAGE, Many, PingPong};

const MSG_FASTOPEN: i32 = 0x2000_0000;
/// The most of an answer that is reported back.
const ANSWER_LIMIT: u64 = 64 * 1024;

/// What came of one attempt to connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The connection came about.
    pub connected: bool,
    /// What `getpeername` showed.
    pub peer: Option<SocketAddr>,
    /// What `getsockname` showed.
    pub local: Option<SocketAddr>,
    /// What was received.
    pub received: String,
    /// The first error, by its kind as Rust names it: `ConnectionRefused`, `ConnectionReset`, `TimedOut`, …
    pub error: Option<String>,
    /// How long it all took, in milliseconds.
    pub took_ms: u64,
}

/// Round trips of one connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// How many there were.
    pub rounds: usize,
    /// Half of them took at most this long, in microseconds.
    pub p50_us: f64,
    /// 99 % of them took at most this long, in microseconds.
    pub p99_us: f64,
    /// 99.9 % of them took at most this long, in microseconds.
    pub p999_us: f64,
}

/// How long one connection took from `connect` on, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct FirstByte {
    /// Until it was open.
    pub open_us: f64,
    /// Until the first byte of the answer was there.
    pub first_byte_us: f64,
}

/// What came of many connections.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Connections that did everything right.
    pub good: usize,
    /// Connections that did not.
    pub failed: usize,
    /// The first few errors.
    pub errors: Vec<String>,
    /// How long it all took, in milliseconds.
    pub took_ms: u64,
    /// The longest time between a failure and the next good connection, or the end, in milliseconds.
    #[serde(default)]
    pub longest_outage_ms: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.good += other.good;
        self.failed += other.failed;
        self.errors.extend(other.errors);
        self.errors.truncate(5);
        self.longest_outage_ms = self.longest_outage_ms.max(other.longest_outage_ms);
    }

    pub(super) fn note(&mut self, done: std::io::Result<()>) {
        match done {
            Ok(()) => self.good += 1,
            Err(error) => {
                self.failed += 1;
                if self.errors.len() < 5 {
                    self.errors.push(error.to_string());
                }
            }
        }
    }
}

/// Connects as told; whatever goes wrong is part of the result.
pub(super) fn connect(how: &Connect) -> Attempt {
    let start = Instant::now();
    let mut attempt = Attempt::default();
    if let Err(error) = try_connect(how, &mut attempt) {
        attempt.error = Some(match error.kind() {
            ErrorKind::WouldBlock => "TimedOut".to_owned(),
            kind => format!("{kind:?}"),
        });
    }
    attempt.took_ms = milliseconds(start.elapsed());
    attempt
}

fn try_connect(how: &Connect, attempt: &mut Attempt) -> std::io::Result<()> {
    let limit = Duration::from_millis(how.limit_ms.max(1));
    let protocol = if how.mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(how.to), Type::STREAM, Some(protocol))?;
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    if let Some(mark) = how.mark {
        socket.set_mark(mark)?;
    }
    if let Some(device) = &how.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(source) = how.bind {
        socket.bind(&source.into())?;
    }
    if how.fast_open {
        socket.send_to_with_flags(how.send.as_bytes(), &how.to.into(), MSG_FASTOPEN)?;
    } else {
        // A blocking connect as applications make it; the send time-out bounds it.
        socket.connect(&how.to.into())?;
    }
    let mut stream = TcpStream::from(socket);
    attempt.connected = true;
    attempt.peer = stream.peer_addr().ok();
    attempt.local = stream.local_addr().ok();
    if !how.fast_open {
        stream.write_all(how.send.as_bytes())?;
    }
    if !how.no_fin {
        match stream.shutdown(Shutdown::Write) {
            // Reset already: reading tells that.
            Err(error) if error.kind() == ErrorKind::NotConnected => {}
            done => done?,
        }
    }
    let mut received = Vec::new();
    let read = (&mut stream).take(ANSWER_LIMIT).read_to_end(&mut received);
    attempt.received = String::from_utf8_lossy(&received).into_owned();
    read.map(drop)
}

/// Plays ping-pong; any error ends it.
pub(super) fn ping_pong(how: &PingPong) -> Result<Latency> {
    let mut stream = open(how.to).context("connect")?;
    let deadline = Instant::now() + Duration::from_millis(how.for_ms);
    let mut took = Vec::new();
    let (mut message, mut answer) = (vec![0; how.bytes], vec![0; how.bytes]);
    for round in 0_usize.. {
        let start = Instant::now();
        if start >= deadline {
            break;
        }
        exchange_with(&mut stream, round, &mut message, &mut answer)
            .with_context(|| format!("round {round}"))?;
        took.push(start.elapsed());
        if how.rest_ms > 0 {
            thread::sleep(Duration::from_millis(how.rest_ms));
        }
    }
    took.sort_unstable();
    let at = |share| percentile_us(&took, share);
    Ok(Latency { rounds: took.len(), p50_us: at(0.5), p99_us: at(0.99), p999_us: at(0.999) })
}

/// The time, in microseconds, that this share of all `sorted` times does not exceed; nought of none.
pub(super) fn percentile_us(sorted: &[Duration], share: f64) -> f64 {
    sorted.get((sorted.len() as f64 * share) as usize).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

/// Connects and exchanges one message, one connection after another; any error ends it.
pub(super) fn first_bytes(how: &FirstBytes) -> Result<Vec<FirstByte>> {
    let us = |since: Instant| since.elapsed().as_secs_f64() * 1e6;
    (0..how.count)
        .map(|number| {
            let start = Instant::now();
            let mut stream = open(how.to).with_context(|| format!("connection {number}"))?;
            let open_us = us(start);
            exchange(&mut stream, number).with_context(|| format!("connection {number}"))?;
            let first_byte_us = us(start);
            finish(stream)?;
            Ok(FirstByte { open_us, first_byte_us })
        })
        .collect()
}

/// Opens all connections, and only when all are open exchanges messages on each and closes them.
pub(super) fn many(how: &Many) -> Result<Tally> {
    let start = Instant::now();
    let barrier = Barrier::new(how.connections);
    let exchanged = Barrier::new(how.connections + usize::from(how.hold));
    let (enter, leave) = sync_channel(how.opening.map_or(how.connections, usize::from));
    let leave = Mutex::new(leave);
    let ended = AtomicBool::new(false);
    let over = Barrier::new(how.connections + usize::from(how.hold));
    let mut tally = Tally::default();
    thread::scope(|scope| -> Result<()> {
        let mut threads = Vec::new();
        for number in 0..how.connections {
            let (barrier, exchanged, over, ended) = (&barrier, &exchanged, &over, &ended);
            let (enter, leave) = (enter.clone(), &leave);
            let work = move || {
                let _ = enter.send(());
                let stream = open(how.to);
                if let Ok(leave) = leave.lock() {
                    let _ = leave.recv();
                }
                barrier.wait();
                let mut done = stream.and_then(|mut stream| {
                    (0..how.rounds).try_for_each(|round| exchange(&mut stream, number * 31 + round))?;
                    Ok(stream)
                });
                if how.hold {
                    exchanged.wait();
                    if let (Some(rest), Ok(stream)) = (how.busy_every_ms, &mut done)
                        && let Err(error) = busy(stream, number, Duration::from_millis(rest), ended)
                    {
                        done = Err(error);
                    }
                    over.wait();
                }
                finish(done?)
            };
            threads.push(thread::Builder::new().stack_size(128 * 1024).spawn_scoped(scope, work)?);
        }
        if how.hold {
            exchanged.wait();
            eprintln!("holding");
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
            ended.store(true, Ordering::Relaxed);
            over.wait();
        }
        for thread in threads {
            tally.note(thread.join().unwrap_or_else(|_| Err(std::io::Error::other("panicked"))));
        }
        Ok(())
    })?;
    tally.took_ms = milliseconds(start.elapsed());
    Ok(tally)
}

/// Exchanges messages until the others end too.
fn busy(stream: &mut TcpStream, number: usize, rest: Duration, ended: &AtomicBool) -> std::io::Result<()> {
    while !ended.load(Ordering::Relaxed) {
        exchange(stream, number)?;
        thread::sleep(rest);
    }
    Ok(())
}

/// Connects, exchanges one message, closes, and again.
pub(super) fn churn(how: &Churn) -> Tally {
    let start = Instant::now();
    let stopped = Arc::new(AtomicBool::new(false));
    if how.until_eof {
        let stopped = Arc::clone(&stopped);
        thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            stopped.store(true, Ordering::Relaxed);
        });
    }
    let mut sum = Tally::default();
    thread::scope(|scope| {
        let client = |_| scope.spawn(|| one_after_another(how, start, &stopped));
        let clients: Vec<_> = (0..how.clients).map(client).collect();
        for client in clients {
            match client.join() {
                Ok(tally) => sum.add(tally),
                Err(_) => sum.note(Err(std::io::Error::other("a client panicked"))),
            }
        }
    });
    sum.took_ms = milliseconds(start.elapsed());
    sum
}

/// What one client of [`churn`] does.
fn one_after_another(how: &Churn, start: Instant, stopped: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    let mut failing_since = None;
    let goes_on = |tally: &Tally| {
        let within = start.elapsed() < Duration::from_millis(how.for_ms) && !stopped.load(Ordering::Relaxed);
        within && tally.good + tally.failed < how.count
    };
    while goes_on(&tally) {
        let (number, began) = (tally.good + tally.failed, Instant::now());
        let done = open(how.to).and_then(|mut stream| {
            exchange(&mut stream, number)?;
            finish(stream)
        });
        let since = if done.is_ok() { failing_since.take() } else { failing_since.or(Some(began)) };
        if let Some(since) = since {
            failing_since = done.is_err().then_some(since);
            tally.longest_outage_ms = tally.longest_outage_ms.max(milliseconds(since.elapsed()));
        }
        tally.note(done);
        if how.rest_ms > 0 {
            thread::sleep(Duration::from_millis(how.rest_ms));
        }
    }
    tally
}

fn milliseconds(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}

pub(super) fn open(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, IO_LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IO_LIMIT))?;
    stream.set_write_timeout(Some(IO_LIMIT))?;
    Ok(stream)
}

/// Sends a message that depends on `number` and demands the same back.
pub(super) fn exchange(stream: &mut TcpStream, number: usize) -> std::io::Result<()> {
    exchange_with(stream, number, &mut [0; MESSAGE], &mut [0; MESSAGE])
}

/// The same with a message as long as these buffers.
fn exchange_with(
    stream: &mut TcpStream,
    number: usize,
    message: &mut [u8],
    answer: &mut [u8],
) -> std::io::Result<()> {
    message.fill(number.to_le_bytes()[0]);
    message[..8].copy_from_slice(&(number as u64).to_le_bytes());
    stream.write_all(message)?;
    stream.read_exact(answer)?;
    if answer == message { Ok(()) } else { Err(std::io::Error::other("another message came back")) }
}

/// Half-closes and demands the other half's end.
pub(super) fn finish(mut stream: TcpStream) -> std::io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0; 16])? {
        0 => Ok(()),
        _ => Err(std::io::Error::other("bytes after the last message")),
    }
}
