//! What every long-running command does with its process.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;

/// How long tasks get to end after the program is done.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Runs `program` to its end on a runtime of its own. Why it cannot go on goes to the log, and only an exit code remains;
/// where the log is off, it is returned.
pub(super) fn run(
    runtime: &mut Builder,
    what: &str,
    program: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<ExitCode> {
    raise_open_files();
    let runtime = runtime.enable_all().build().context("cannot start the runtime")?;
    let done = runtime.block_on(program);
    runtime.shutdown_timeout(LAST_MOMENT);
    match done {
        Err(error) if tracing::enabled!(tracing::Level::ERROR) => {
            tracing::error!(error = format!("{error:#}"), "{what} cannot go on");
            Ok(ExitCode::FAILURE)
        }
        done => done.map(|()| ExitCode::SUCCESS),
    }
}

/// A connection takes several descriptors; the usual soft limit of 1024 is meant for programs that call select(2).
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}
