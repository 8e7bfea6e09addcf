//! A parent for the agent, which starts it again at once when a signal has killed it: whoever supervises this process from
//! outside takes seconds to notice, and backs off. The node's pods are refused all the while.
//!
//! Promises to end as the agent ends in every other case, and never to outlive or be outlived by it.

use std::{
    env,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Command, ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
    },
    unistd::{Pid, getppid},
};

/// Tells the agent that this process started it, and by which process id.
const PARENT: &str = "AMBIT_SUPERVISOR";
/// What the process is called, so that the agent's own stands out.
const NAME: &std::ffi::CStr = c"ambit-parent";
/// An agent that lives no longer is left to whoever supervises this process, and backs off.
const TOO_SHORT: Duration = Duration::from_secs(1);
/// What a shell adds to the number of a signal that ended a process.
const BY_SIGNAL: i32 = 128;

/// Runs the agent with the arguments of this process, but for the flag `flag` and the variable `variable` that asked for
/// a parent. Call it before any other thread is started.
pub(super) fn run(flag: &str, variable: &str, logging: impl FnOnce()) -> anyhow::Result<ExitCode> {
    let signals = awaited();
    signals.thread_block().context("cannot hold back signals")?;
    logging();
    prctl::set_name(NAME).context("cannot take a name")?;
    let program = env::current_exe().context("cannot find this program")?;
    loop {
        let started = Instant::now();
        let mut agent = Command::new(&program);
        agent.args(env::args_os().skip(1).filter(|argument| argument != flag)).env_remove(variable);
        // A Ctrl-C at the terminal comes by this process only: a second signal would cut what the first lets end.
        agent.env(PARENT, std::process::id().to_string()).process_group(0);
        let (status, stopping) = follow(&mut agent, &signals)?;
        let Some(signal) = status.signal() else {
            return Ok(code(status.code()));
        };
        let lived = started.elapsed();
        if stopping || lived < TOO_SHORT {
            tracing::error!(signal, lived_ms = lived.as_millis(), "the agent was killed");
            return Ok(code(Some(BY_SIGNAL + signal)));
        }
        tracing::error!(signal, "the agent was killed; starting it again");
    }
}

/// Runs a process to its end and hands SIGTERM and SIGINT on to it; whether one came.
fn follow(command: &mut Command, signals: &SigSet) -> anyhow::Result<(ExitStatus, bool)> {
    let mut child = command.spawn().context("cannot start the agent")?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut stopping = false;
    loop {
        match signals.wait().context("cannot wait for signals")? {
            Signal::SIGCHLD => {
                if let Some(status) = child.try_wait().context("cannot wait for the agent")? {
                    return Ok((status, stopping));
                }
            }
            signal => {
                stopping = true;
                // It is not waited for yet, so the id is its own still.
                let _: nix::Result<()> = kill(pid, signal);
            }
        }
    }
}

fn code(code: Option<i32>) -> ExitCode {
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The signals that the parent waits for.
fn awaited() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect()
}

/// In the agent: ends with the parent that started it, if one did, and takes the signals that are held back there. Call it
/// before any other thread is started.
pub(super) fn end_with_parent() -> anyhow::Result<()> {
    let Some(parent) = env::var(PARENT).ok().and_then(|pid| pid.parse().ok()).map(Pid::from_raw) else {
        return Ok(());
    };
    // Whoever inherits the variable without being its child is not meant.
    if getppid() != parent {
        return Ok(());
    }
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot be bound to the parent")?;
    anyhow::ensure!(getppid() == parent, "the parent has ended");
    awaited().thread_unblock().context("cannot take signals")
}
