//! TCP and TLS of the CA service. Bounds how many connections there are and how long a handshake or a request may take.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ambit_proto::istio::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Server, server::Connected};

use super::{
    CaServiceError,
    authority::Authority,
    service::{Peer, Service},
};
use crate::identity::Leaf;

/// Clients served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
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

/// Serves until `shutdown`, then lets requests under way end.
pub(super) async fn serve(
    listener: TcpListener,
    authority: Arc<Authority>,
    service: Service,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), CaServiceError> {
    let (ready, incoming) = mpsc::channel::<io::Result<Secured>>(64);
    let accepting = accept(listener, authority, ready);
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
async fn accept(listener: TcpListener, authority: Arc<Authority>, ready: mpsc::Sender<io::Result<Secured>>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
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
        let (acceptor, ready) = (TlsAcceptor::from(authority.tls()), ready.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, secure(acceptor, stream, addr, slot)).await {
                // Nobody receives while the service ends.
                Ok(Ok(secured)) => drop(ready.send(Ok(secured)).await),
                Ok(Err(error)) => tracing::debug!(%addr, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%addr, "TLS handshake took too long"),
            }
        });
    }
}

async fn secure(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    addr: SocketAddr,
    slot: OwnedSemaphorePermit,
) -> io::Result<Secured> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let identity = match stream.get_ref().1.peer_certificates() {
        None | Some([]) => None,
        Some([leaf, ..]) => Some(Leaf::read(leaf).map_err(io::Error::other)?.id),
    };
    Ok(Secured { stream, peer: Peer { addr: addr.ip().to_canonical(), identity }, _slot: slot })
}

/// A connection after its handshake.
struct Secured {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _slot: OwnedSemaphorePermit,
}

impl Connected for Secured {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
