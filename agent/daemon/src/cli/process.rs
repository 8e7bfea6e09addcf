//! What every long-running command does with its process.

use std::{
    env,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;

/// How long tasks get to end after the program is done.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// What the C library takes from here when a process begins, and later not any more (glibc's manual, "Tunables").
const TUNABLES: &str = "GLIBC_TUNABLES";
/// Threads share two heaps and keep no free pieces of their own: each heap keeps what has become free in the midst of it, and
/// each piece that a thread keeps holds a page.
const SMALL_HEAP: &str = "glibc.malloc.arena_max=2:glibc.malloc.tcache_count=0";

/// Has this process begin anew with a heap that gives back what is free, unless somebody has chosen another one. Call it before
/// anything else is done.
pub(super) fn begin_with_small_heap() {
    if cfg!(target_env = "gnu")
        && env::var_os(TUNABLES).is_none()
        && let Ok(program) = env::current_exe()
    {
        let mut arguments = env::args_os();
        let mut anew = Command::new(program);
        anew.arg0(arguments.next().unwrap_or_default()).args(arguments).env(TUNABLES, SMALL_HEAP);
        // It comes back only if that cannot be done: then it goes on with more than it needs.
        let _: std::io::Error = anew.exec();
    }
}

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
