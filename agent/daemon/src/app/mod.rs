//! Wiring: the only room that knows everyone.

use std::path::Path;

use crate::cli::AgentConfig;

/// Runs the agent.
pub(crate) async fn run(_config: AgentConfig) -> anyhow::Result<()> {
    anyhow::bail!("this build has no agent")
}

/// Takes off what the agent of `node`, or any agent, pinned under `bpf_root`; says what that was.
pub(crate) fn uninstall(_bpf_root: &Path, _node: Option<&str>) -> anyhow::Result<Vec<String>> {
    anyhow::bail!("this build has no capture")
}
