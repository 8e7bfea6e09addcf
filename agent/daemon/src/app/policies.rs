//! What `ambit explain`, `check` and `analyze` are answered by: the world that verdicts are taken from.

use std::collections::BTreeMap;

use ambit_proto::policy::v1 as proto;

use crate::{
    admin::PolicyProvider,
    diagnosis::{self, Unable},
    discovery::Feed,
};

impl PolicyProvider for Feed {
    fn explain(&self, request: &proto::ExplainRequest) -> Result<proto::ExplainResponse, Unable> {
        diagnosis::explain(&self.world(), request)
    }

    fn check(&self, request: &proto::CheckRequest) -> Result<proto::CheckResponse, Unable> {
        diagnosis::check(&self.world(), request)
    }

    fn analyze(&self) -> Result<proto::AnalyzeResponse, Unable> {
        diagnosis::analyze(&self.world(), &BTreeMap::new())
    }
}
