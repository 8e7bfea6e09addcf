//! The TLS handshake, driven record by record so that not one byte behind it is read by rustls; then its traffic keys go
//! to the record layer.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use ambit_core::reason::Reason;
use rustls::{
    ClientConfig, CommonState, ExtractedSecrets, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::{CertificateDer, ServerName},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    link::{Link, Tickets},
    record::{ContentType, HEADER_LEN, Opener, Sealer, TRAILER_LEN},
};
use crate::{
    capture::wake_at,
    tunnel::{
        TunnelError,
        buffer::{SMALL, Share},
        secret::Secrets,
        session::PeerFacts,
        tls::{self, ALPN, PeerIdentity},
    },
};

/// Bytes that are read of a handshake at first; more, up to [`SMALL`], if a record is longer.
const FIRST_ROOM: usize = 4096;
/// Records that a peer may send for a handshake: few are needed, and each costs a step.
const RECORDS: usize = 32;
/// Reads of one record until which it is looked at as often as something comes.
const READS: usize = 3;
/// How long a peer may take for a handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the peer must show beyond a good chain: answers with its identity, or why not.
pub(crate) trait Verify:
    Fn(&[CertificateDer<'_>]) -> Result<Arc<PeerIdentity>, (Reason, String)>
{
}
impl<F: Fn(&[CertificateDer<'_>]) -> Result<Arc<PeerIdentity>, (Reason, String)>> Verify for F {}

/// The client's side. `verify` sees the peer's certificates after every handshake, resumed or not.
pub(in crate::tunnel) async fn connect(
    tcp: TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    share: &Arc<Share>,
    verify: impl Verify,
) -> Result<Box<Link>, TunnelError> {
    let party = party(&tcp);
    let side = {
        // It makes the key shares.
        let _turn = share.turn(party).await;
        Box::new(UnbufferedClientConnection::new(config, name)?)
    };
    run(tcp, party, side, share, verify).await
}

/// The server's side.
pub(in crate::tunnel) async fn accept(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    share: &Arc<Share>,
    verify: impl Verify,
) -> Result<Box<Link>, TunnelError> {
    let party = party(&tcp);
    run(tcp, party, Box::new(UnbufferedServerConnection::new(config)?), share, verify).await
}

/// Whose handshake it is, for fairness; those who are gone already have one line for all.
fn party(tcp: &TcpStream) -> IpAddr {
    tcp.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip())
}

async fn run<S: Side>(
    tcp: TcpStream,
    party: IpAddr,
    side: Box<S>,
    share: &Arc<Share>,
    verify: impl Verify,
) -> Result<Box<Link>, TunnelError> {
    let mut driver = Driver::new(tcp, side);
    match timeout(PATIENCE, driver.drive(party, share)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            // The alert tells the peer why, if it still listens.
            let _: Result<_, _> = timeout(Duration::from_secs(1), driver.send_alert()).await;
            return Err(error);
        }
        Err(_) => return Err(TunnelError::Timeout("finish the TLS handshake")),
    }
    driver.into_link(share, verify).await
}

/// One side of rustls' unbuffered API.
trait Side {
    type Data;

    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn state(&self) -> &CommonState;
    fn keys(self: Box<Self>, secrets: Secrets) -> Result<(Sealer, Opener, Tickets), TunnelError>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn keys(self: Box<Self>, secrets: Secrets) -> Result<(Sealer, Opener, Tickets), TunnelError> {
        let (ExtractedSecrets { tx, rx }, kernel) = self.dangerous_into_kernel_connection()?;
        let (own, peer) = secrets.behind(&tx.1, &rx.1)?;
        Ok((Sealer::new(tx.0, own)?, Opener::new(rx.0, peer)?, Tickets::Taken(Box::new(kernel))))
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn keys(self: Box<Self>, secrets: Secrets) -> Result<(Sealer, Opener, Tickets), TunnelError> {
        let (ExtractedSecrets { tx, rx }, _) = self.dangerous_into_kernel_connection()?;
        let (peer, own) = secrets.behind(&rx.1, &tx.1)?;
        Ok((Sealer::new(tx.0, own)?, Opener::new(rx.0, peer)?, Tickets::Given))
    }
}

struct Driver<S> {
    tcp: TcpStream,
    side: Box<S>,
    /// What rustls has told so far.
    secrets: Secrets,
    input: Vec<u8>,
    filled: usize,
    /// How much of the input rustls is shown: whole records only, and one more each time it asks.
    shown: usize,
    records: usize,
    output: Vec<u8>,
}

/// What rustls wants next.
enum Next {
    Again,
    Flush,
    Read,
    Done,
}

impl<S: Side> Driver<S> {
    fn new(tcp: TcpStream, side: Box<S>) -> Self {
        let (secrets, input) = (Secrets::default(), vec![0; FIRST_ROOM]);
        Self { tcp, side, secrets, input, filled: 0, shown: 0, records: 0, output: Vec::new() }
    }

    async fn drive(&mut self, party: IpAddr, share: &Share) -> Result<(), TunnelError> {
        // What a record asks for may be a signature; what is asked for without one is little.
        let mut turn = None;
        loop {
            match self.step()? {
                Next::Again => {}
                Next::Done if !self.side.state().is_handshaking() => return Ok(()),
                Next::Flush => {
                    turn = None;
                    self.tcp.write_all(&self.output).await?;
                    self.output.clear();
                }
                Next::Read | Next::Done => {
                    drop(turn.take());
                    self.show_record().await?;
                    turn = Some(share.turn(party).await);
                }
            }
        }
    }

    fn step(&mut self) -> Result<Next, TunnelError> {
        let listening = self.secrets.listen();
        let UnbufferedStatus { discard, state, .. } = self.side.process(&mut self.input[..self.shown]);
        drop(listening);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut self.output, |room| data.encode(room)).map(|()| Next::Again)
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Next::Flush)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Next::Read),
            Ok(ConnectionState::WriteTraffic(_)) => Ok(Next::Done),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Err(TunnelError::Closed),
            Ok(_) => Err(TunnelError::Unexpected("data")),
            Err(error) => {
                let (reason, text) = tls::handshake_reason(&error);
                Err(TunnelError::Handshake { reason, text })
            }
        };
        self.input.copy_within(discard..self.filled, 0);
        self.filled -= discard;
        self.shown -= discard;
        next
    }

    /// Reads until there is one more whole record to show.
    async fn show_record(&mut self) -> Result<(), TunnelError> {
        self.records += 1;
        if self.records > RECORDS {
            let text = "the peer sent more records than a TLS handshake has".into();
            return Err(TunnelError::Handshake { reason: Reason::TlsHandshake, text });
        }
        let mut reads = 0;
        loop {
            let rest = &self.input[self.shown..self.filled];
            let mut wanted = HEADER_LEN;
            if let Some(header) = rest.first_chunk::<HEADER_LEN>() {
                wanted += usize::from(u16::from_be_bytes([header[3], header[4]]));
                if rest.len() >= wanted {
                    self.shown += wanted;
                    if reads >= READS {
                        wake_at(&self.tcp, 1);
                    }
                    return Ok(());
                }
                if self.shown + wanted > SMALL {
                    return Err(TunnelError::Record);
                }
            }
            let missing = wanted - rest.len();
            if self.filled == self.input.len() {
                self.input.resize(SMALL, 0);
            }
            reads += 1;
            if reads >= READS {
                // A record that comes bit by bit is not worth a look at each.
                wake_at(&self.tcp, missing);
            }
            let read = self.tcp.read(&mut self.input[self.filled..]).await?;
            if read == 0 {
                return Err(TunnelError::Handshake {
                    reason: Reason::TlsHandshake,
                    text: "the peer closed the connection in the middle of the TLS handshake".into(),
                });
            }
            self.filled += read;
        }
    }

    /// Sends the alert that rustls has ready after an error, if it has one.
    async fn send_alert(&mut self) -> Result<(), TunnelError> {
        while matches!(self.step(), Ok(Next::Again)) {}
        self.tcp.write_all(&self.output).await?;
        self.tcp.shutdown().await?;
        Ok(())
    }

    async fn into_link(mut self, share: &Arc<Share>, verify: impl Verify) -> Result<Box<Link>, TunnelError> {
        let state = self.side.state();
        let group = state
            .negotiated_key_exchange_group()
            .map_or("unknown", |group| group.name().as_str().unwrap_or("unknown"));
        let resumed = state.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        let verified = match state.alpn_protocol() {
            Some(protocol) if protocol == ALPN => verify(state.peer_certificates().unwrap_or_default()),
            _ => Err((Reason::TlsHandshake, "the peer does not speak ambit/1".to_owned())),
        };
        let (mut sealer, opener, tickets) = self.side.keys(self.secrets)?;
        match verified {
            Ok(peer) => {
                let facts = PeerFacts { peer, group, resumed };
                let early = &self.input[..self.filled];
                Ok(Box::new(Link::new(self.tcp, (sealer, opener, tickets), facts, early, share.clone())))
            }
            Err((reason, text)) => {
                const BAD_CERTIFICATE: u8 = 42;
                const FATAL: u8 = 2;
                let mut alert = [0; HEADER_LEN + 2 + TRAILER_LEN];
                alert[HEADER_LEN..HEADER_LEN + 2].copy_from_slice(&[FATAL, BAD_CERTIFICATE]);
                sealer.seal(&mut alert, 2, ContentType::Alert)?;
                let _: Result<_, _> = timeout(Duration::from_secs(1), self.tcp.write_all(&alert)).await;
                Err(TunnelError::Handshake { reason, text })
            }
        }
    }
}

fn encode(
    output: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), TunnelError> {
    let start = output.len();
    let mut room = 4096;
    loop {
        output.resize(start + room, 0);
        match write(&mut output[start..]) {
            Ok(written) => {
                output.truncate(start + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(needed)) if needed.required_size > room => {
                room = needed.required_size;
            }
            Err(error) => return Err(rustls::Error::General(error.to_string()).into()),
        }
    }
}

#[cfg(test)]
mod tests;
