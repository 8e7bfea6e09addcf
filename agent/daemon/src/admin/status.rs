//! `ambit.admin.v1.Admin` over the UNIX socket in the run directory, and over TCP on the loopback interface.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ambit_proto::{
    admin::v1::{
        ObservationsRequest, ObservationsResponse, StatusRequest, StatusResponse,
        admin_server::{Admin, AdminServer},
    },
    policy::v1::policies_server::{self, PoliciesServer},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
    time::{sleep, timeout},
};
use tokio_stream::{Stream, wrappers::UnixListenerStream};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::BoxFuture,
    transport::{Server, server::Connected},
};

use super::{AdminError, PolicyProvider, policies};
use crate::{
    clients::{Held, Places},
    instance::{self, InstanceError, RunDir},
};

/// Connections listed when the caller does not say how many.
const DEFAULT_CONNECTIONS: u32 = 1_000;
/// The most connections listed to anyone.
const MAX_CONNECTIONS: u32 = 100_000;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may keep its connection.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
/// How long the end of the agent waits for requests under way.
const DRAIN: Duration = Duration::from_secs(1);

/// Clients at once over TCP, where every process of the host may come; the oldest makes room for the next.
const MAX_TCP_CLIENTS: usize = 8;
/// How long to wait for a predecessor to let go of the address, or for descriptors, before trying again.
const RETRY: Duration = Duration::from_secs(1);

/// Where the status comes from.
pub(crate) trait StatusProvider: Send + Sync + 'static {
    /// A snapshot of the agent, with every connection. Called on a thread that may block for a moment.
    fn status(&self) -> StatusResponse;

    /// What was observed of connections. Called on such a thread as well.
    fn observations(&self) -> ObservationsResponse;

    /// What answers questions about policies, if anything does.
    fn policies(&self) -> Option<Arc<dyn PolicyProvider>> {
        None
    }
}

/// Answers status requests until `shutdown`.
pub(crate) async fn serve_status(
    run_dir: RunDir,
    provider: Arc<dyn StatusProvider>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), AdminError> {
    let (listener, _file) = run_dir.listen()?;
    serve_unix(listener, RunDir::socket_path(run_dir.path()), provider, shutdown).await
}

/// Answers status requests at the socket `path`, which is this agent's own.
pub(crate) async fn serve_own_status(
    path: PathBuf,
    provider: Arc<dyn StatusProvider>,
) -> Result<(), AdminError> {
    let (listener, _file) = instance::listen(path.clone())?;
    serve_unix(listener, path, provider, std::future::pending()).await
}

async fn serve_unix(
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    provider: Arc<dyn StatusProvider>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), AdminError> {
    let incoming = UnixListener::from_std(listener)
        .map(UnixListenerStream::new)
        .map_err(|source| InstanceError::RunDir { path, source })?;
    serve(incoming, provider, shutdown).await
}

/// Answers status requests on a loopback address until `shutdown`. While an agent that is being replaced still has the
/// address, waits for it.
pub(crate) async fn serve_status_tcp(
    addr: SocketAddr,
    provider: Arc<dyn StatusProvider>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), AdminError> {
    let mut shutdown = Box::pin(shutdown);
    let listener = loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => break listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tracing::debug!(%addr, "the status address is still in use");
            }
            Err(source) => return Err(AdminError::ListenStatus { addr, source }),
        }
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = sleep(RETRY) => {}
        }
    };
    serve(Clients::of(listener), provider, shutdown).await
}

async fn serve<I>(
    incoming: impl Stream<Item = io::Result<I>>,
    provider: Arc<dyn StatusProvider>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), AdminError>
where
    I: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let server = Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .max_concurrent_streams(4)
        .concurrency_limit_per_connection(4)
        .max_connection_age(CONNECTION_AGE)
        .max_connection_age_grace(REQUEST_TIMEOUT)
        .serve_with_incoming_shutdown(Services::of(provider), incoming, async {
            shutdown.await;
            let _ = stop.send(());
        });
    tokio::select! {
        served = server => served.map_err(AdminError::Status),
        () = async {
            let _ = stopped.await;
            sleep(DRAIN).await;
        } => Ok(()),
    }
}

/// TCP clients as they come, so many at once.
struct Clients(Pin<Box<dyn Future<Output = Accepted> + Send>>);

/// A client, and what takes the next one.
type Accepted = (TcpListener, Places, Held<TcpStream, ()>);

impl Clients {
    fn of(listener: TcpListener) -> Self {
        // Over loopback there is but one source.
        Self(Box::pin(Self::next(listener, Places::new(MAX_TCP_CLIENTS, MAX_TCP_CLIENTS))))
    }

    async fn next(listener: TcpListener, places: Places) -> Accepted {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let Some(place) = places.take(from.ip()) else { continue };
                    let over = async move {
                        // The server's own bound holds for those only that speak.
                        let _over = timeout(CONNECTION_AGE + REQUEST_TIMEOUT, place.lost()).await;
                    };
                    return (listener, places, Held::until(over, stream, ()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a status client could not be accepted");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

impl Stream for Clients {
    type Item = io::Result<Held<TcpStream, ()>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Poll::Ready((listener, places, client)) = self.0.as_mut().poll(context) else {
            return Poll::Pending;
        };
        self.0 = Box::pin(Self::next(listener, places));
        Poll::Ready(Some(Ok(client)))
    }
}

/// All that is served on one socket, told apart by the path that a request names.
#[derive(Clone)]
struct Services {
    admin: AdminServer<Service>,
    policies: PoliciesServer<policies::Service>,
}

impl Services {
    fn of(provider: Arc<dyn StatusProvider>) -> Self {
        let policies = PoliciesServer::new(policies::Service::new(provider.clone()));
        Self { admin: AdminServer::new(Service { provider }), policies }
    }
}

impl tower::Service<hyper::Request<Body>> for Services {
    type Response = hyper::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        let service = request.uri().path().split('/').nth(1);
        if service == Some(policies_server::SERVICE_NAME) {
            self.policies.call(request)
        } else {
            self.admin.call(request)
        }
    }
}

struct Service {
    provider: Arc<dyn StatusProvider>,
}

#[tonic::async_trait]
impl Admin for Service {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let wanted = request.into_inner().max_connections.unwrap_or(DEFAULT_CONNECTIONS).min(MAX_CONNECTIONS);
        let mut status = self.ask(StatusProvider::status).await?;
        status.connections_total = status.connections_total.max(status.connections.len() as u64);
        status.connections.truncate(wanted as usize);
        Ok(Response::new(status))
    }

    async fn observations(
        &self,
        _: Request<ObservationsRequest>,
    ) -> Result<Response<ObservationsResponse>, Status> {
        self.ask(StatusProvider::observations).await.map(Response::new)
    }
}

impl Service {
    /// Has the provider look at the agent, on a thread that may block.
    async fn ask<T: Send + 'static>(
        &self,
        look: impl FnOnce(&dyn StatusProvider) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let provider = self.provider.clone();
        tokio::task::spawn_blocking(move || look(&*provider))
            .await
            .map_err(|_| Status::internal("the agent could not describe itself; see its log"))
    }
}

#[cfg(test)]
mod tests {
    use ambit_proto::admin::v1::{Connection, admin_client::AdminClient};
    use tonic::transport::Endpoint;

    use super::*;

    struct Scripted(Option<StatusResponse>);

    impl StatusProvider for Scripted {
        fn status(&self) -> StatusResponse {
            self.0.clone().expect("the script has an answer")
        }

        fn observations(&self) -> ObservationsResponse {
            ObservationsResponse::default()
        }
    }

    async fn ask(provider: Scripted, max_connections: Option<u32>) -> Result<StatusResponse, Status> {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::claim(dir.path()).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve_status(run_dir, Arc::new(provider), async {
            let _ = stopped.await;
        }));
        let path = RunDir::socket_path(dir.path());
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        let channel =
            Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await.unwrap();
        let answer = AdminClient::new(channel).status(StatusRequest { max_connections }).await;
        drop(stop);
        server.await.unwrap().unwrap();
        assert!(!path.exists(), "the socket outlived its server");
        answer.map(Response::into_inner)
    }

    fn with_connections(count: usize) -> Scripted {
        Scripted(Some(StatusResponse {
            node: "n1".to_owned(),
            connections: vec![Connection::default(); count],
            ..StatusResponse::default()
        }))
    }

    #[tokio::test]
    async fn connections_are_listed_as_far_as_asked_for_and_all_counted() {
        for (asked, listed) in [(None, 1_000), (Some(0), 0), (Some(7), 7), (Some(u32::MAX), 2_500)] {
            let status = ask(with_connections(2_500), asked).await.unwrap();
            assert_eq!((status.node.as_str(), status.connections.len()), ("n1", listed));
            assert_eq!(status.connections_total, 2_500);
        }
    }

    #[tokio::test]
    async fn over_tcp_it_waits_for_its_predecessor_and_silent_clients_keep_nobody_out() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = taken.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve_status_tcp(addr, Arc::new(with_connections(3)), async {
            let _ = stopped.await;
        }));
        sleep(Duration::from_millis(50)).await;
        assert!(!server.is_finished(), "the address was in use, and it gave up");
        drop(taken);
        let silent = async || loop {
            match TcpStream::connect(addr).await {
                Ok(stream) => return stream,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        };
        let mut waiting = Vec::new();
        for _ in 0..MAX_TCP_CLIENTS {
            waiting.push(silent().await);
        }
        let ask = async || {
            let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
            AdminClient::new(channel)
                .status(StatusRequest { max_connections: None })
                .await
                .unwrap()
                .into_inner()
        };
        let crowded = timeout(Duration::from_secs(2), ask()).await;
        assert_eq!(crowded.expect("a ninth client was not served").connections_total, 3);
        let oldest = waiting.remove(0);
        let ended = async {
            loop {
                oldest.readable().await.unwrap();
                if matches!(oldest.try_read(&mut [0; 64]), Ok(0)) {
                    return;
                }
            }
        };
        timeout(Duration::from_secs(2), ended).await.expect("the oldest client still has its place");
        drop(stop);
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_provider_that_panics_is_an_error_not_the_end() {
        let status = ask(Scripted(None), None).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Internal);
    }
}
