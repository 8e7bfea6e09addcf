//! Asks an agent for its status.

use std::{io, path::Path, time::Duration};

use ambit_proto::admin::v1::{
    ObservationsRequest, ObservationsResponse, StatusRequest, StatusResponse, admin_client::AdminClient,
};
use anyhow::{Context, anyhow, bail};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    runtime::Builder,
    time::timeout,
};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::instance::RunDir;

/// How long the agent has for its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer taken, in bytes: several times what the agent lists at most.
const MAX_ANSWER: usize = 128 * 1024 * 1024;

/// What an agent can be asked.
pub(super) trait Question: Clone + Send + 'static {
    /// What it answers.
    type Answer: Send + 'static;

    fn put(
        self,
        agent: AdminClient<Channel>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
}

impl Question for StatusRequest {
    type Answer = StatusResponse;

    async fn put(self, mut agent: AdminClient<Channel>) -> Result<Response<StatusResponse>, Status> {
        agent.status(self).await
    }
}

impl Question for ObservationsRequest {
    type Answer = ObservationsResponse;

    async fn put(self, mut agent: AdminClient<Channel>) -> Result<Response<ObservationsResponse>, Status> {
        agent.observations(self).await
    }
}

/// Asks the agent with this run directory for its status, as [`put_in_time`] does.
pub(super) fn ask_in_time(
    run_dir: &Path,
    instance: Option<&str>,
    max_connections: u32,
) -> anyhow::Result<StatusResponse> {
    put_in_time(run_dir, instance, StatusRequest { max_connections: Some(max_connections) })
}

/// Asks an agent with this run directory, and waits no longer than five seconds: the one that calls itself `instance`, if there
/// is one, else the one that serves the node.
pub(super) fn put_in_time<Q: Question>(
    run_dir: &Path,
    instance: Option<&str>,
    question: Q,
) -> anyhow::Result<Q::Answer> {
    let runtime = Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        timeout(PATIENCE, ask(run_dir, instance, question)).await.unwrap_or_else(|_| {
            bail!("the agent did not answer within {PATIENCE:?}: it is overloaded or stuck; see its log")
        })
    })
}

async fn ask<Q: Question>(run_dir: &Path, instance: Option<&str>, question: Q) -> anyhow::Result<Q::Answer> {
    let own = instance.and_then(|instance| RunDir::own_socket_path(run_dir, instance));
    if let Some(own) = own
        && let Ok(stream) = UnixStream::connect(&own).await
    {
        return ask_over(stream, question).await;
    }
    let socket = RunDir::socket_path(run_dir);
    let stream = UnixStream::connect(&socket).await.map_err(|error| explain(error, run_dir, &socket))?;
    ask_over(stream, question).await
}

/// Asks the agent at the other end of `stream`.
pub(super) async fn ask_over<Q: Question>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    question: Q,
) -> anyhow::Result<Q::Answer> {
    let mut stream = Some(TokioIo::new(stream));
    // The name is not looked up: the connection is there already, and there is but one.
    let channel = Endpoint::from_static("http://agent")
        .connect_with_connector(service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted));
            async { stream }
        }))
        .await
        .context("what answers does not speak ambit's protocol")?;
    match question.put(AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER)).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            bail!("the agent is older than this command and does not know the question: upgrade it")
        }
        // What is not an answer of the agent's has a source: the connection came to its end.
        Err(status) => match std::error::Error::source(&status) {
            Some(_) => bail!(
                "the agent ended, or closed the connection, before it had answered. If that goes on, it may be short of memory \
                 (in Kubernetes: kubectl describe its pod, OOMKilled; agent.resources.limits.memory of the chart)"
            ),
            None => bail!("the agent could not answer: {} ({:?})", status.message(), status.code()),
        },
    }
}

/// Why the socket of an agent cannot be connected to, and what to do.
pub(super) fn explain(error: io::Error, run_dir: &Path, socket: &Path) -> anyhow::Error {
    let run_dir = run_dir.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => anyhow!(
            "no agent runs with --run-dir {run_dir}: start one (ambit agent --help), or name the folder of the one \
             that runs with --run-dir or AMBIT_RUN_DIR"
        ),
        io::ErrorKind::PermissionDenied => {
            anyhow!("{} belongs to another user: run this command as the user of the agent", socket.display())
        }
        _ => anyhow::Error::new(error).context(format!("cannot connect to {}", socket.display())),
    }
}

/// A channel to the agent at the other end of `stream`.
pub(super) async fn channel_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> anyhow::Result<Channel> {
    let mut stream = Some(TokioIo::new(stream));
    // The name is not looked up: the connection is there already, and there is but one.
    let connect = service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted));
        async { stream }
    });
    let channel = Endpoint::from_static("http://agent").connect_with_connector(connect).await;
    channel.context("what answers does not speak ambit's protocol")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ambit_proto::admin::v1::Connection;

    use super::*;
    use crate::admin::{StatusProvider, serve_own_status, serve_status};

    struct Fixed(&'static str);

    impl StatusProvider for Fixed {
        fn status(&self) -> StatusResponse {
            let connection = Connection {
                source_addr: "10.0.1.5:40000".to_owned(),
                destination_addr: "10.0.2.7:8080".to_owned(),
                source_workload: "shop/web".to_owned(),
                peer_identity: "spiffe://td1/ns/stock/sa/cart".to_owned(),
                ..Connection::default()
            };
            StatusResponse {
                node: self.0.to_owned(),
                connections: vec![connection; 20_000],
                ..StatusResponse::default()
            }
        }

        fn observations(&self) -> ObservationsResponse {
            ObservationsResponse { node: "n1".to_owned(), ..ObservationsResponse::default() }
        }
    }

    fn at_most(connections: u32) -> StatusRequest {
        StatusRequest { max_connections: Some(connections) }
    }

    #[tokio::test]
    async fn an_agent_that_runs_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::claim(dir.path()).unwrap();
        let server = tokio::spawn(serve_status(run_dir, Arc::new(Fixed("n1")), std::future::pending()));
        while !RunDir::socket_path(dir.path()).exists() {
            tokio::task::yield_now().await;
        }
        let answer = ask(dir.path(), None, at_most(10)).await.unwrap();
        assert_eq!((answer.connections.len(), answer.connections_total), (10, 20_000));
        let answer = ask(dir.path(), None, at_most(u32::MAX)).await.unwrap();
        assert_eq!((answer.node.as_str(), answer.connections.len()), ("n1", 20_000));
        assert_eq!(ask(dir.path(), None, ObservationsRequest {}).await.unwrap().node, "n1");
        server.abort();
    }

    #[tokio::test]
    async fn an_agent_that_dies_over_its_answer_is_told_of_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(RunDir::socket_path(dir.path())).unwrap();
        let agent = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // It has taken the request, and is killed.
            let mut request = [0; 64];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut request).await.unwrap();
        });
        let error = ask(dir.path(), None, at_most(0)).await.unwrap_err().to_string();
        assert!(error.contains("short of memory") && !error.contains("Unknown"), "{error}");
        agent.await.unwrap();
    }

    #[tokio::test]
    async fn an_agent_that_waits_or_is_replaced_answers_for_itself() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::claim(dir.path()).unwrap();
        let serving = tokio::spawn(serve_status(run_dir, Arc::new(Fixed("n1")), std::future::pending()));
        let own = RunDir::own_socket_path(dir.path(), "next").unwrap();
        let waiting = tokio::spawn(serve_own_status(own.clone(), Arc::new(Fixed("next one"))));
        while !RunDir::socket_path(dir.path()).exists() || !own.exists() {
            tokio::task::yield_now().await;
        }
        for (instance, node) in [(Some("next"), "next one"), (Some("other"), "n1"), (None, "n1")] {
            assert_eq!(ask(dir.path(), instance, at_most(0)).await.unwrap().node, node);
        }
        waiting.abort();
        let _ended = waiting.await;
        assert_eq!(ask(dir.path(), Some("next"), at_most(0)).await.unwrap().node, "n1", "it has gone");
        serving.abort();
    }

    #[tokio::test]
    async fn where_no_agent_runs_the_error_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let expected = format!("no agent runs with --run-dir {}: start one", dir.path().display());
        let error = ask(dir.path(), None, at_most(0)).await.unwrap_err().to_string();
        assert!(error.starts_with(&expected), "{error}");
        drop(std::os::unix::net::UnixListener::bind(RunDir::socket_path(dir.path())).unwrap());
        let error = ask(dir.path(), None, at_most(0)).await.unwrap_err().to_string();
        assert!(error.starts_with(&expected), "{error}");
    }
}
