//! What `ambit explain`, `check` and `analyze` are answered by: the world that verdicts are taken from.

use std::collections::BTreeMap;

use ambit_proto::policy::v1 as proto;

use super::tokens;
use crate::{
    admin::PolicyProvider,
    diagnosis::{self, Unable},
    discovery::Feed,
    jwt::Tokens,
};

/// The agent's world, and the keys that it has for tokens.
pub(super) struct Policies {
    pub(super) feed: Feed,
    pub(super) tokens: Tokens,
}

impl PolicyProvider for Policies {
    fn explain(&self, request: &proto::ExplainRequest) -> Result<proto::ExplainResponse, Unable> {
        diagnosis::explain(&self.feed.world(), request)
    }

    fn check(&self, request: &proto::CheckRequest) -> Result<proto::CheckResponse, Unable> {
        diagnosis::check(&self.feed.world(), request)
    }

    fn analyze(&self) -> Result<proto::AnalyzeResponse, Unable> {
        let mut answer = diagnosis::analyze(&self.feed.world(), &BTreeMap::new())?;
        answer.findings.extend(tokens::findings(&self.tokens.issuers()));
        Ok(answer)
    }
}
