//! `ambit.policy.v1.Policies`, on the same socket and address as the status.

use std::sync::Arc;

use ambit_proto::policy::v1::{
    AnalyzeRequest, AnalyzeResponse, CheckRequest, CheckResponse, ExplainRequest, ExplainResponse,
    policies_server::Policies,
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::StatusProvider;
use crate::diagnosis::Unable;

/// Questions answered at once: each may look at the whole cluster.
const AT_ONCE: usize = 1;

/// Where answers about policies come from. Called on a thread that may block for a moment.
pub(crate) trait PolicyProvider: Send + Sync + 'static {
    /// Why connections are let in or refused.
    fn explain(&self, request: &ExplainRequest) -> Result<ExplainResponse, Unable>;
    /// All that is for a pod.
    fn check(&self, request: &CheckRequest) -> Result<CheckResponse, Unable>;
    /// What is likely a mistake.
    fn analyze(&self) -> Result<AnalyzeResponse, Unable>;
}

pub(super) struct Service {
    provider: Arc<dyn StatusProvider>,
    turns: Semaphore,
}

impl Service {
    pub(super) fn new(provider: Arc<dyn StatusProvider>) -> Self {
        Self { provider, turns: Semaphore::new(AT_ONCE) }
    }

    async fn answer<T: Send + 'static>(
        &self,
        answer: impl FnOnce(&dyn PolicyProvider) -> Result<T, Unable> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        // The semaphore is never closed; who waits too long is timed out by the server.
        let _turn = self.turns.acquire().await;
        let Some(provider) = self.provider.policies() else {
            return Err(Status::unimplemented("this agent answers no questions about policies"));
        };
        let answered = tokio::task::spawn_blocking(move || answer(&*provider)).await;
        match answered {
            Ok(Ok(answer)) => Ok(Response::new(answer)),
            Ok(Err(unable)) => Err(status(&unable)),
            Err(_) => Err(Status::internal("the agent could not answer; see its log")),
        }
    }
}

fn status(unable: &Unable) -> Status {
    let text = unable.to_string();
    match unable {
        Unable::Misasked(_) => Status::invalid_argument(text),
        Unable::NotFound(_) => Status::not_found(text),
        Unable::NotReady => Status::unavailable(text),
    }
}

#[tonic::async_trait]
impl Policies for Service {
    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let request = request.into_inner();
        self.answer(move |provider| provider.explain(&request)).await
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let request = request.into_inner();
        self.answer(move |provider| provider.check(&request)).await
    }

    async fn analyze(&self, _: Request<AnalyzeRequest>) -> Result<Response<AnalyzeResponse>, Status> {
        self.answer(PolicyProvider::analyze).await
    }
}

#[cfg(test)]
mod tests {
    use ambit_proto::{
        admin::v1::{ObservationsResponse, StatusRequest, StatusResponse, admin_client::AdminClient},
        policy::v1::policies_client::PoliciesClient,
    };
    use tonic::{Code, transport::Endpoint};

    use super::*;
    use crate::{admin::serve_status, instance::RunDir};

    /// Answers whoever asks for pod `known`, or no question at all.
    struct Scripted(bool);

    impl PolicyProvider for Scripted {
        fn explain(&self, _: &ExplainRequest) -> Result<ExplainResponse, Unable> {
            Err(Unable::NotReady)
        }

        fn check(&self, request: &CheckRequest) -> Result<CheckResponse, Unable> {
            match &*request.pod {
                "known" => Ok(CheckResponse::default()),
                "" => Err(Unable::Misasked("no pod is named".to_owned())),
                _ => Err(Unable::NotFound("there is no such pod".to_owned())),
            }
        }

        fn analyze(&self) -> Result<AnalyzeResponse, Unable> {
            panic!("as a mistake of ours would")
        }
    }

    impl StatusProvider for Scripted {
        fn status(&self) -> StatusResponse {
            StatusResponse { node: "n1".to_owned(), ..StatusResponse::default() }
        }

        fn observations(&self) -> ObservationsResponse {
            ObservationsResponse::default()
        }

        fn policies(&self) -> Option<Arc<dyn PolicyProvider>> {
            self.0.then(|| Arc::new(Self(true)) as Arc<dyn PolicyProvider>)
        }
    }

    /// Serves while `work` asks.
    async fn served(answers: bool, work: impl AsyncFnOnce(tonic::transport::Channel)) {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::claim(dir.path()).unwrap();
        let server = tokio::spawn(serve_status(run_dir, Arc::new(Scripted(answers)), std::future::pending()));
        let path = RunDir::socket_path(dir.path());
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap();
        work(endpoint.connect().await.unwrap()).await;
        server.abort();
    }

    #[tokio::test]
    async fn questions_and_the_status_are_answered_on_one_socket() {
        served(true, async |channel| {
            let mut policies = PoliciesClient::new(channel.clone());
            let check = |pod: &str| CheckRequest { pod: pod.to_owned(), ..CheckRequest::default() };
            assert!(policies.check(check("known")).await.is_ok());
            for (pod, code) in [("", Code::InvalidArgument), ("other", Code::NotFound)] {
                let status = policies.check(check(pod)).await.unwrap_err();
                assert_eq!(status.code(), code, "{status:?}");
            }
            let unready = policies.explain(ExplainRequest::default()).await.unwrap_err();
            assert_eq!(unready.code(), Code::Unavailable);
            let broken = policies.analyze(AnalyzeRequest {}).await.unwrap_err();
            assert_eq!(broken.code(), Code::Internal, "and the agent goes on");
            let status = AdminClient::new(channel).status(StatusRequest { max_connections: None }).await;
            assert_eq!(status.unwrap().into_inner().node, "n1");
        })
        .await;
        served(false, async |channel| {
            let status = PoliciesClient::new(channel).check(CheckRequest::default()).await.unwrap_err();
            assert_eq!(status.code(), Code::Unimplemented);
        })
        .await;
    }
}
