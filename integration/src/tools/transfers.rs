//! Transfers of which every byte is looked at, at both ends: random lengths in pieces of random sizes both ways at once, with
//! the ways that connections end.
//!
//! What stands at which place follows from the transfer's seed, so that a byte that is lost, doubled or in another place is found.
//! The server keeps what it finds amiss until it is asked.

use std::{
    io::{self, ErrorKind, Read, Write},
    mem,
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use socket2::{Domain, SockRef, Socket, Type};

use super::servers::serve;
use crate::process;

/// How `transfers` transfers.
#[derive(Clone, Debug, clap::Args)]
pub struct Transfers {
    /// The `transfer-server`.
    #[arg(long)]
    pub to: SocketAddr,
    /// How many mebibytes, both directions together, beside those of connections that are reset.
    #[arg(long, default_value_t = 256)]
    pub mebibytes: u64,
    /// What lengths, sizes and endings follow from.
    #[arg(long, default_value_t = 20)]
    pub seed: u64,
    /// How many connections at a time.
    #[arg(long, default_value_t = 8)]
    pub at_a_time: usize,
}

/// What came of them.
#[derive(Debug, Default, Serialize)]
pub(super) struct TransferTally {
    connections: usize,
    mebibytes: u64,
    half_closed: usize,
    reset: usize,
    /// What either end has found amiss.
    failed: Vec<String>,
}

/// How a transfer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Both ends send at once, and end when they are through.
    Both,
    /// The server begins after the client has ended.
    ClientFirst,
    /// The client begins after the server has ended.
    ServerFirst,
    ClientResets,
    ServerResets,
}

const ENDS: [End; 5] = [End::Both, End::ClientFirst, End::ServerFirst, End::ClientResets, End::ServerResets];

/// In place of a transfer's first byte: what has the server found amiss?
const QUESTION: u8 = 0xff;
const HEADER: usize = 25;
/// How long nothing may move, on a machine that is not emulated.
const STALL: Duration = Duration::from_secs(60);
const LONGEST: u64 = 32 << 20;
const PIECE: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct Transfer {
    end: End,
    seed: u64,
    /// Bytes to the server, and from it.
    up: u64,
    down: u64,
}

/// Takes transfers.
pub(super) fn server(listen: SocketAddr) -> Result<()> {
    let failed = Arc::new(Mutex::new(Vec::new()));
    let active = Arc::new(AtomicUsize::new(0));
    serve(listen, move |mut stream| {
        patient(&stream)?;
        let mut header = [0; HEADER];
        stream.read_exact(&mut header[..1])?;
        if header[0] == QUESTION {
            let deadline = process::deadline(STALL);
            while active.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
            let mut found = mem::take(&mut *failed.lock().unwrap_or_else(PoisonError::into_inner));
            if active.load(Ordering::SeqCst) > 0 {
                found.push("the server still waits for transfers to end".to_owned());
            }
            return stream.write_all(serde_json::to_string(&found)?.as_bytes());
        }
        active.fetch_add(1, Ordering::SeqCst);
        let done = stream
            .read_exact(&mut header[1..])
            .map_err(anyhow::Error::from)
            .and_then(|()| Transfer::read(&header))
            .and_then(|transfer| transfer.serve(stream).with_context(|| format!("{transfer:?}")));
        if let Err(error) = done {
            failed.lock().unwrap_or_else(PoisonError::into_inner).push(format!("server: {error:#}"));
        }
        active.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    })
}

/// Makes transfers, and asks the server at the end.
pub(super) fn run(how: &Transfers) -> Result<TransferTally> {
    let (transfers, mut tally) = plan(how);
    let (left, failed) = (Mutex::new(transfers.into_iter()), Mutex::new(Vec::new()));
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..how.at_a_time {
            scope.spawn(|| {
                while let Some(transfer) = next() {
                    if let Err(error) = transfer.ask(how.to) {
                        let text = format!("client: {transfer:?}: {error:#}");
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                    }
                }
            });
        }
    });
    tally.failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut stream = TcpStream::connect(how.to)?;
    stream.set_read_timeout(Some(2 * STALL * process::patience()))?;
    stream.write_all(&[QUESTION])?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("what the server has found")?;
    tally.failed.extend(serde_json::from_str::<Vec<String>>(&answer)?);
    Ok(tally)
}

fn plan(how: &Transfers) -> (Vec<Transfer>, TransferTally) {
    let mut choices = Choices(how.seed);
    let (mut transfers, mut tally) = (Vec::new(), TransferTally::default());
    let mut bytes = 0;
    while bytes < how.mebibytes << 20 {
        let end = ENDS[choices.below(ENDS.len() as u64) as usize];
        let mut length = || match choices.below(8) {
            0 => choices.below(3),
            1 => 16_384 - 2 + choices.below(4),
            _ => choices.below(LONGEST),
        };
        let (up, down) = match end {
            End::ClientResets => (length(), 0),
            End::ServerResets => (0, length()),
            _ => (length(), length()),
        };
        match end {
            End::ClientResets | End::ServerResets => tally.reset += 1,
            End::ClientFirst | End::ServerFirst => tally.half_closed += 1,
            End::Both => {}
        }
        if !matches!(end, End::ClientResets | End::ServerResets) {
            bytes += up + down;
        }
        transfers.push(Transfer { end, seed: choices.next(), up, down });
    }
    tally.connections = transfers.len();
    tally.mebibytes = bytes >> 20;
    (transfers, tally)
}

impl Transfer {
    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = self.end as u8;
        for (field, value) in header[1..].chunks_exact_mut(8).zip([self.seed, self.up, self.down]) {
            field.copy_from_slice(&value.to_be_bytes());
        }
        header
    }

    fn read(header: &[u8; HEADER]) -> Result<Self> {
        let end = *ENDS.get(usize::from(header[0])).context("no transfer")?;
        let field =
            |at: usize| header[at..at + 8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        Ok(Self { end, seed: field(1), up: field(9), down: field(17) })
    }

    /// The bytes of each direction; the sizes of pieces are chosen apart at each end.
    fn up(&self) -> Bytes {
        Bytes { seed: self.seed, at: 0 }
    }

    fn down(&self) -> Bytes {
        Bytes { seed: !self.seed, at: 0 }
    }

    /// The client's end.
    fn ask(&self, to: SocketAddr) -> Result<()> {
        let mut choices = Choices(self.seed ^ 1);
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if choices.below(2) == 0 {
            socket.set_recv_buffer_size(4096 << choices.below(6))?;
        }
        socket.connect(&to.into()).context("connect")?;
        let mut stream = TcpStream::from(socket);
        patient(&stream)?;
        stream.write_all(&self.header())?;
        match self.end {
            End::Both | End::ClientFirst => thread::scope(|scope| {
                let sent = scope.spawn(|| send(&stream, self.up(), self.up, Choices(self.seed ^ 2)));
                let got = receive(&stream, self.down(), self.down, &mut choices);
                joined(sent)?;
                got
            }),
            End::ServerFirst => {
                receive(&stream, self.down(), self.down, &mut choices)?;
                send(&stream, self.up(), self.up, choices)
            }
            End::ClientResets => send_and_reset(stream, self.up(), self.up, choices),
            End::ServerResets => receive_reset(&stream, self.down(), self.down, &mut choices),
        }
    }

    /// The server's.
    fn serve(&self, stream: TcpStream) -> Result<()> {
        let mut choices = Choices(self.seed ^ 3);
        match self.end {
            End::Both => thread::scope(|scope| {
                let sent = scope.spawn(|| send(&stream, self.down(), self.down, Choices(self.seed ^ 4)));
                let got = receive(&stream, self.up(), self.up, &mut choices);
                joined(sent)?;
                got
            }),
            End::ClientFirst => {
                receive(&stream, self.up(), self.up, &mut choices)?;
                send(&stream, self.down(), self.down, choices)
            }
            End::ServerFirst => {
                send(&stream, self.down(), self.down, Choices(self.seed ^ 4))?;
                receive(&stream, self.up(), self.up, &mut choices)
            }
            End::ClientResets => receive_reset(&stream, self.up(), self.up, &mut choices),
            End::ServerResets => send_and_reset(stream, self.down(), self.down, choices),
        }
    }
}

fn joined(sent: thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    sent.join().unwrap_or_else(|_| bail!("the sending thread panicked"))
}

fn patient(stream: &TcpStream) -> io::Result<()> {
    let stall = STALL * process::patience();
    stream.set_read_timeout(Some(stall))?;
    stream.set_write_timeout(Some(stall))
}

/// Sends so many, and FIN.
fn send(stream: &TcpStream, bytes: Bytes, length: u64, choices: Choices) -> Result<()> {
    write(stream, bytes, length, choices).with_context(|| format!("sending {length} bytes"))?;
    stream.shutdown(Shutdown::Write).context("shutdown")
}

fn send_and_reset(stream: TcpStream, bytes: Bytes, length: u64, choices: Choices) -> Result<()> {
    write(&stream, bytes, length, choices).with_context(|| format!("sending {length} bytes"))?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

fn write(mut stream: &TcpStream, mut bytes: Bytes, length: u64, mut choices: Choices) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    while bytes.at < length {
        let size = choices.size().min(usize::try_from(length - bytes.at).unwrap_or(PIECE));
        bytes.fill(&mut piece[..size]);
        stream.write_all(&piece[..size])?;
        choices.rest(64);
    }
    Ok(())
}

/// Gets so many, each the right one, and the end.
fn receive(stream: &TcpStream, mut bytes: Bytes, length: u64, choices: &mut Choices) -> Result<()> {
    read(stream, &mut bytes, choices).with_context(|| format!("at {} of {length} bytes", bytes.at))?;
    ensure!(bytes.at == length, "{} of {length} bytes came before the end", bytes.at);
    Ok(())
}

/// Gets the right ones as far as they come, and then a reset, no end.
fn receive_reset(stream: &TcpStream, mut bytes: Bytes, length: u64, choices: &mut Choices) -> Result<()> {
    match read(stream, &mut bytes, choices) {
        Ok(()) => bail!("an end after {} of {length} bytes, where a reset was to come", bytes.at),
        Err(error) => match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(ErrorKind::ConnectionReset) if bytes.at <= length => Ok(()),
            _ => Err(error.context(format!("at {} of {length} bytes, waiting for a reset", bytes.at))),
        },
    }
}

/// Reads to the end, and looks at each byte.
fn read(mut stream: &TcpStream, bytes: &mut Bytes, choices: &mut Choices) -> Result<()> {
    let (mut piece, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let size = choices.size();
        let got = stream.read(&mut piece[..size])?;
        if got == 0 {
            return Ok(());
        }
        let start = bytes.at;
        bytes.fill(&mut expected[..got]);
        if let Some(at) = (0..got).find(|at| piece[*at] != expected[*at]) {
            bail!("another byte at {}", start + at as u64);
        }
        choices.rest(128);
    }
}

/// A stream of bytes, each of which follows from its place.
#[derive(Clone, Copy, Debug)]
struct Bytes {
    seed: u64,
    at: u64,
}

impl Bytes {
    fn fill(&mut self, room: &mut [u8]) {
        let skipped = (self.at % 8) as usize;
        let (head, rest) = room.split_at_mut(room.len().min((8 - skipped) % 8));
        head.copy_from_slice(&self.word()[skipped % 8..][..head.len()]);
        self.at += head.len() as u64;
        for piece in rest.chunks_mut(8) {
            piece.copy_from_slice(&self.word()[..piece.len()]);
            self.at += piece.len() as u64;
        }
    }

    fn word(&self) -> [u8; 8] {
        mixed(self.seed.wrapping_add((self.at / 8).wrapping_mul(GOLDEN))).to_le_bytes()
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
fn mixed(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// Random choices that can be made again.
#[derive(Debug)]
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mixed(self.0)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// How many bytes to read or write at once: much, little, and about a TLS record.
    fn size(&mut self) -> usize {
        const USUAL: [usize; 7] = [1, 100, 1448, 16_384, 16_385, 65_536, 131_072];
        match USUAL.get(self.below(10) as usize) {
            Some(size) => *size,
            None => 1 + self.below(PIECE as u64) as usize,
        }
    }

    /// A pause now and then.
    fn rest(&mut self, one_in: u64) {
        if self.below(one_in) == 0 {
            thread::sleep(Duration::from_micros(self.below(10_000)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_follow_from_their_place_whatever_the_pieces() {
        let mut whole = [0; 100];
        Bytes { seed: 7, at: 0 }.fill(&mut whole);
        let (mut bytes, mut pieces) = (Bytes { seed: 7, at: 0 }, Vec::new());
        for size in [1, 2, 8, 0, 5, 16, 1, 30, 37] {
            let mut piece = vec![0; size];
            bytes.fill(&mut piece);
            pieces.extend(piece);
        }
        assert_eq!(pieces, whole);
        let transfer = Transfer { end: End::ServerFirst, seed: 1, up: 2, down: 1 << 40 };
        let read = Transfer::read(&transfer.header()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{transfer:?}"));
    }
}
