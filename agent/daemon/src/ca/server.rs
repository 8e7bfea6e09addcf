//! TCP and TLS of the CA service. Bounds how many connections there are, of all and of one source, and how long each may take to
//! prove anything: who has not proved itself makes room for the next.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ambit_proto::istio::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use super::{
    CaServiceError,
    authority::Authority,
    limits::Limits,
    metrics::CaMetrics,
    service::{Peer, Service},
    standing::Standing,
};
use crate::{
    clients::{Held, Place, Places, Source},
    identity::Leaf,
};

/// Clients served at once.
const MAX_CONNECTIONS: usize = 4096;
/// Of them from one source: an agent needs one, two while it is being replaced. Others of its node may share its address.
pub(super) const MAX_EACH: usize = 64;
/// TLS handshakes a second with one source; ten seconds' worth may come at once.
const HANDSHAKES: u32 = 20;
/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of one client at a time.
const MAX_STREAMS: u32 = 64;
/// After so long a client connects again: it meets the certificate in force by then, and maybe another replica.
const CONNECTION_AGE: Duration = Duration::from_secs(600);
/// An idle client is asked for a sign of life this often.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of the service waits for requests under way.
const DRAIN: Duration = Duration::from_secs(5);
/// The longest request read.
const MAX_REQUEST: usize = 64 * 1024;
const MAX_HEADERS: u32 = 32 * 1024;

/// A connection after its handshake.
type Secured = Held<TlsStream<TcpStream>, Peer>;

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the TLS handshake.
    pub(super) handshake: Duration,
    /// From then on until a request by somebody who is known.
    pub(super) proof: Duration,
    /// From one such request to the next.
    pub(super) idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            proof: Duration::from_secs(10),
            idle: Duration::from_secs(120),
        }
    }
}

/// Serves until `shutdown`, then lets requests under way end.
pub(super) async fn serve(
    listener: TcpListener,
    authority: Arc<Authority>,
    service: Service,
    metrics: CaMetrics,
    patience: Patience,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), CaServiceError> {
    let (ready, incoming) = mpsc::channel::<io::Result<Secured>>(64);
    let accepting = accept(listener, authority, metrics, patience, ready);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let service = IstioCertificateServiceServer::new(service).max_decoding_message_size(MAX_REQUEST);
    let server = Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_connection_age(CONNECTION_AGE)
        .max_connection_age_grace(REQUEST_TIMEOUT)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADERS)
        .serve_with_incoming_shutdown(service, ReceiverStream::new(incoming), async {
            shutdown.await;
            let _ = stop.send(());
        });
    tokio::select! {
        served = server => served.map_err(CaServiceError::Server),
        () = accepting => Ok(()),
        () = async {
            let _ = stopped.await;
            sleep(DRAIN).await;
        } => Ok(()),
    }
}

/// Accepts for as long as there is somebody to serve.
async fn accept(
    listener: TcpListener,
    authority: Arc<Authority>,
    metrics: CaMetrics,
    patience: Patience,
    ready: mpsc::Sender<io::Result<Secured>>,
) {
    let places = Places::new(MAX_CONNECTIONS, MAX_EACH);
    let handshakes = Limits::new(HANDSHAKES);
    loop {
        let (stream, addr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if ready.is_closed() {
            return std::future::pending().await;
        }
        if !handshakes.take(&Source::of(addr.ip()), std::time::Instant::now()) {
            metrics.dropped("rate");
            tracing::debug!(%addr, "turned away: too many connections a second from there");
            continue;
        }
        let Some(place) = places.take(addr.ip()) else {
            metrics.dropped("full");
            tracing::debug!(%addr, "turned away: as many connections as there may be");
            continue;
        };
        let (acceptor, ready, metrics) = (TlsAcceptor::from(authority.tls()), ready.clone(), metrics.clone());
        tokio::spawn(async move {
            match secure(acceptor, stream, addr, place, patience).await {
                // Nobody receives while the service ends.
                Ok(secured) => drop(ready.send(Ok(secured)).await),
                Err(error) => {
                    metrics.dropped("handshake");
                    tracing::debug!(%addr, %error, "TLS handshake failed");
                }
            }
        });
    }
}

/// The handshake, for as long as the client may take and has its place.
async fn secure(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    addr: SocketAddr,
    place: Place,
    patience: Patience,
) -> io::Result<Secured> {
    stream.set_nodelay(true)?;
    let stream = tokio::select! {
        accepted = timeout(patience.handshake, acceptor.accept(stream)) => accepted??,
        () = place.lost() => return Err(io::Error::other("it made room for another")),
    };
    let identity = match stream.get_ref().1.peer_certificates() {
        None | Some([]) => None,
        Some([leaf, ..]) => Some(Leaf::read(leaf).map_err(io::Error::other)?.id),
    };
    let standing = Arc::new(Standing::new(place, patience.proof, patience.idle));
    let over = standing.clone().over();
    Ok(Held::until(over, stream, Peer { addr: addr.ip().to_canonical(), identity, standing }))
}
