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
