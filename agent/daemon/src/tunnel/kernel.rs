//! Records that the kernel seals and opens in place of the agent, on tunnels whose handshake is over. Nothing of it is seen on the
//! wire: each end decides for itself, and for each direction.
//!
//! Promises that a direction which the kernel does not take stays with the agent, as nothing has been sealed or opened by then; and
//! that what counts as sent has reached TCP before a stream or a connection ends: the kernel keeps the last record to itself while
//! TCP has no room for it, and drops it if the socket is closed meanwhile.

mod probe;

use std::{
    fmt, io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::{
    libc,
    sys::socket::{TlsGetRecordType, sockopt::TlsCryptoInfo},
};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};
use zeroize::Zeroize as _;

pub(crate) use self::probe::{Ability, probe};
use super::{
    TunnelError,
    secret::{Cipher, TrafficKeys, TrafficSecret},
};
use crate::{
    capture::{
        attach_tls, next_opened, next_sealed, open_by_kernel, receive_record, seal_by_kernel, send_record,
        taken_by_tcp, unacknowledged,
    },
    telemetry::KernelTlsCounts,
};

/// Bytes of plaintext that the kernel puts into a record at most.
const RECORD: usize = 1 << 14;
/// Bytes of a record beside its plaintext: header, content type and tag, of every cipher that TLS 1.3 has here.
const OVERHEAD: u64 = 5 + 1 + 16;
/// How soon, and how often at most, it is looked whether TCP has taken everything.
const LOOK: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(20)];
/// After as many looks that find all acknowledged that TCP had, nothing can be left that TCP has no room for.
const IDLE_LOOKS: u32 = 10;

/// Whether records are handed to the kernel, and by how much it is known for.
#[derive(Debug)]
pub(crate) struct Offload {
    ability: Ability,
    counts: KernelTlsCounts,
}

impl Offload {
    /// To a kernel of which `ability` is known; `counts` tells of each direction what became of it.
    pub(crate) fn new(ability: Ability, counts: KernelTlsCounts) -> Self {
        Self { ability, counts }
    }

    /// Has the kernel's TLS sit on a connection; `false` if it does not, and both directions are left to the agent.
    pub(super) fn attach(&self, tcp: &TcpStream) -> bool {
        let attached = attach_tls(tcp);
        if let Err(error) = &attached {
            self.refused("of a tunnel", error);
            self.counts.sending.kept.inc();
            self.counts.receiving.kept.inc();
        }
        attached.is_ok()
    }

    /// Hands over what is sent from now on: record `sequence` is the next one. TCP must have got all that was sealed before.
    pub(super) fn send(&self, tcp: &TcpStream, sequence: u64, secret: &TrafficSecret) -> Option<Outgoing> {
        let handed_over = Outgoing::new(tcp, self.ability, sequence, secret);
        self.counts.sending.tell(handed_over.is_ok());
        handed_over.inspect_err(|error| self.refused("that a tunnel sends", error)).ok()
    }

    /// Hands over what is received: the next byte begins record `sequence`.
    pub(super) fn receive(&self, tcp: &TcpStream, sequence: u64, secret: &TrafficSecret) -> Option<Opening> {
        let handed_over = Opening::new(tcp, self.ability, sequence, secret);
        self.counts.receiving.tell(handed_over.is_ok());
        handed_over.inspect_err(|error| self.refused("that a tunnel receives", error)).ok()
    }

    fn refused(&self, what: &str, error: &io::Error) {
        tracing::debug!(%error, "the kernel does not take the TLS records {what}: the agent goes on with them");
    }
}

/// What is sent through a socket whose records the kernel seals.
pub(super) struct Outgoing {
    ability: Ability,
    /// What the kernel told of the first keys: which cipher it is. Its keys are wiped out.
    cipher: TlsCryptoInfo,
    /// Bytes that TCP had got before the kernel took over, and bytes of plaintext and records since.
    before: u64,
    plain: u64,
    records: u64,
    /// The number of the first record under the keys in force, and how many there have been since, at most.
    first: u64,
    sealed: u64,
    /// What the keys in force are made of.
    secret: TrafficSecret,
    /// The peer is about to be told new ones.
    renewing: bool,
    look: Option<Look>,
}

/// Looking now and then whether TCP has taken everything.
#[derive(Debug)]
struct Look {
    timer: Pin<Box<Sleep>>,
    pause: Duration,
    idle: u32,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("sealed", &self.sealed).finish_non_exhaustive()
    }
}

impl Outgoing {
    fn new(tcp: &TcpStream, ability: Ability, sequence: u64, secret: &TrafficSecret) -> io::Result<Self> {
        let before = taken_by_tcp(tcp)?;
        let cipher = handed_over(sequence, secret, |keys| seal_by_kernel(tcp, keys))?;
        Ok(Self {
            ability,
            cipher,
            before,
            plain: 0,
            records: 0,
            first: sequence,
            sealed: sequence,
            secret: secret.clone(),
            renewing: false,
            look: None,
        })
    }

    /// Records under the keys in force, at most.
    pub(super) fn sealed(&self) -> u64 {
        self.sealed
    }

    /// Whether the keys can be renewed.
    pub(super) fn renews(&self) -> bool {
        self.ability == Ability::Whole
    }

    /// Counts what the kernel has taken in one call.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.plain += bytes as u64;
        self.sealed += bytes.div_ceil(RECORD) as u64;
    }

    /// Sends a short record of another type than data.
    pub(super) fn poll_send_record(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        content: u8,
        bytes: &[u8],
    ) -> Poll<Result<(), TunnelError>> {
        loop {
            ready!(tcp.poll_write_ready(cx))?;
            match tcp.try_io(Interest::WRITABLE, || send_record(tcp, content, bytes)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error.into())),
                // One record is taken whole.
                Ok(sent) if sent < bytes.len() => {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
                }
                Ok(sent) => {
                    self.wrote(sent);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// Has the keys follow that the peer is about to be told.
    pub(super) fn renew(&mut self) {
        self.renewing = true;
    }

    /// Goes on with the next keys, if the peer has been told of any.
    pub(super) fn renewed(&mut self, tcp: &TcpStream) -> Result<(), TunnelError> {
        if !mem::take(&mut self.renewing) {
            return Ok(());
        }
        self.records += next_sealed(tcp, &self.cipher)? - self.first;
        self.secret = self.secret.next()?;
        handed_over(0, &self.secret, |keys| seal_by_kernel(tcp, keys)).map_err(TunnelError::Keys)?;
        (self.first, self.sealed) = (0, 0);
        Ok(())
    }

    /// Whether it has been found that TCP has not got all records.
    pub(super) fn drains(&self) -> bool {
        self.look.is_some()
    }

    /// Waits until TCP has got all records.
    pub(super) fn poll_drained(&mut self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<io::Result<()>> {
        loop {
            let idle = self.look.as_ref().map_or(0, |look| look.idle);
            if self.is_drained(tcp)? || idle >= IDLE_LOOKS {
                self.look = None;
                return Poll::Ready(Ok(()));
            }
            let is_idle = unacknowledged(tcp)? == 0;
            let look = self.look.get_or_insert_with(|| Look {
                timer: Box::pin(sleep(LOOK[0])),
                pause: LOOK[0],
                idle: 0,
            });
            ready!(look.timer.as_mut().poll(cx));
            look.idle = if is_idle { look.idle + 1 } else { 0 };
            look.pause = (2 * look.pause).min(LOOK[1]);
            look.timer.as_mut().reset(Instant::now() + look.pause);
        }
    }

    fn is_drained(&self, tcp: &TcpStream) -> io::Result<bool> {
        let records = self.records + next_sealed(tcp, &self.cipher)? - self.first;
        let all = self.before + self.plain + records * OVERHEAD;
        let drained = match taken_by_tcp(tcp) {
            Ok(taken) => taken >= all,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => return Err(error),
        };
        if !drained {
            // Of a connection that is gone the kernel tells once, and takes records for it from then on: an error if it is.
            tcp.peer_addr()?;
        }
        Ok(drained)
    }
}

/// What is received through a socket whose records the kernel opens.
pub(super) struct Opening {
    ability: Ability,
    cipher: TlsCryptoInfo,
    /// What the keys in force are made of.
    secret: TrafficSecret,
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").field("ability", &self.ability).finish_non_exhaustive()
    }
}

impl Opening {
    fn new(tcp: &TcpStream, ability: Ability, sequence: u64, secret: &TrafficSecret) -> io::Result<Self> {
        let cipher = handed_over(sequence, secret, |keys| open_by_kernel(tcp, keys))?;
        Ok(Self { ability, cipher, secret: secret.clone() })
    }

    /// Goes on with the keys that the peer has told.
    pub(super) fn renew(&mut self, tcp: &TcpStream) -> Result<(), TunnelError> {
        self.secret = self.secret.next()?;
        let taken = handed_over(0, &self.secret, |keys| open_by_kernel(tcp, keys));
        taken.map(drop).map_err(TunnelError::Keys)
    }

    /// Records under the keys in force, where these are the last ones.
    pub(super) fn opened(&self, tcp: &TcpStream) -> u64 {
        if self.ability == Ability::Whole { 0 } else { next_opened(tcp, &self.cipher).unwrap_or(0) }
    }
}

/// Reads the record of another type than data that a read has stopped at; answers with its type and length.
pub(super) fn take_record(
    tcp: &TcpStream,
    room: &mut [u8],
) -> Result<(Option<TlsGetRecordType>, usize), TunnelError> {
    tcp.try_io(Interest::READABLE, || receive_record(tcp, room)).map_err(failed)
}

/// Passes over the record that a read has stopped at; whether it says that nothing follows.
pub(super) fn passes_end(tcp: &TcpStream) -> io::Result<bool> {
    let (content, _) = tcp.try_io(Interest::READABLE, || receive_record(tcp, &mut [0; 4096]))?;
    Ok(content == Some(TlsGetRecordType::Alert))
}

/// Whether a read has stopped because the next record is no data.
pub(super) fn is_record(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

/// What a read that failed says of the peer's records.
pub(super) fn failed(error: io::Error) -> TunnelError {
    match error.raw_os_error() {
        Some(libc::EBADMSG | libc::EMSGSIZE | libc::EINVAL | libc::EKEYEXPIRED) => TunnelError::Record,
        _ => TunnelError::Io(error),
    }
}

/// Has the kernel take the keys that are made of `secret`; answers with the cipher, its keys wiped out.
fn handed_over(
    sequence: u64,
    secret: &TrafficSecret,
    take: impl FnOnce(&TlsCryptoInfo) -> io::Result<()>,
) -> io::Result<TlsCryptoInfo> {
    let keys = secret.keys().map_err(io::Error::other)?;
    let mut info = crypto_info(sequence, &keys)?;
    let taken = take(&info);
    wipe(&mut info);
    taken.map(|()| info)
}

/// Keys as the kernel takes them: AES-GCM's nonce in two parts, the salt in front.
fn crypto_info(sequence: u64, keys: &TrafficKeys) -> io::Result<TlsCryptoInfo> {
    let rec_seq = sequence.to_be_bytes();
    let info = |cipher_type| libc::tls_crypto_info { version: libc::TLS_1_3_VERSION, cipher_type };
    let fits = |_| io::Error::from(io::ErrorKind::InvalidData);
    let (salt, rest) = keys.iv().split_at(4);
    Ok(match keys.cipher() {
        Cipher::Aes128Gcm => TlsCryptoInfo::Aes128Gcm(libc::tls12_crypto_info_aes_gcm_128 {
            info: info(libc::TLS_CIPHER_AES_GCM_128),
            iv: rest.try_into().map_err(fits)?,
            key: keys.key().try_into().map_err(fits)?,
            salt: salt.try_into().map_err(fits)?,
            rec_seq,
        }),
        Cipher::Aes256Gcm => TlsCryptoInfo::Aes256Gcm(libc::tls12_crypto_info_aes_gcm_256 {
            info: info(libc::TLS_CIPHER_AES_GCM_256),
            iv: rest.try_into().map_err(fits)?,
            key: keys.key().try_into().map_err(fits)?,
            salt: salt.try_into().map_err(fits)?,
            rec_seq,
        }),
        Cipher::ChaCha20Poly1305 => {
            TlsCryptoInfo::Chacha20Poly1305(libc::tls12_crypto_info_chacha20_poly1305 {
                info: info(libc::TLS_CIPHER_CHACHA20_POLY1305),
                iv: *keys.iv(),
                key: keys.key().try_into().map_err(fits)?,
                salt: [],
                rec_seq,
            })
        }
    })
}

/// Leaves no more than which cipher it is.
fn wipe(keys: &mut TlsCryptoInfo) {
    match keys {
        TlsCryptoInfo::Aes128Gcm(keys) => keys.key.zeroize(),
        TlsCryptoInfo::Aes256Gcm(keys) => keys.key.zeroize(),
        TlsCryptoInfo::Chacha20Poly1305(keys) => keys.key.zeroize(),
    }
}
