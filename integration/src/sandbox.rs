//! What a run leaves on the machine, named after the run, and its removal from outside.
//!
//! The work runs in a child process; the parent waits for its end, however it comes, and then sweeps every namespace,
//! process, pin and file of the run. Locks tell a living run from one whose processes were killed.

use std::{
    env, fs,
    os::unix::{fs::symlink, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::signal::{SigSet, Signal, kill},
    unistd::{Pid, alarm, geteuid},
};

use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use crate::{cgroups, netns::Netns};

const PREFIX: &str = "ambit-run";
/// How long the processes of a run may still make files in its folder once they are killed.
const REMOVAL: Duration = Duration::from_secs(5);
const ID: &str = "AMBIT_SANDBOX";
const BINARY: &str = "ambit";
/// Held by the supervisor, and by the process that does its work: a run is over when both are gone.
const SUPERVISOR: &str = "supervisor.lock";
const WORK: &str = "work.lock";
const PINS: &str = "/sys/fs/bpf/ambit";

/// The names and the folder of one run. Valid inside [`supervised`] work.
#[derive(Clone, Debug)]
pub struct Sandbox {
    id: String,
    folder: PathBuf,
}

/// Runs `work` as a child process of this one (the same program, called again with the same arguments) and sweeps
/// behind it when it has ended, failed, been killed, or when this process is told to stop.
pub fn supervised(work: impl FnOnce(&Sandbox) -> Result<()>) -> Result<ExitCode> {
    match env::var(ID) {
        Ok(id) => {
            signals().thread_unblock().context("cannot unblock signals")?;
            perform(id, work)
        }
        Err(_) => supervise(None),
    }
}

/// As [`supervised`], but work that is told to stop has `grace` to conclude. A second signal ends it at once.
pub fn supervised_with_grace(
    grace: Duration,
    work: impl FnOnce(&Sandbox, &Stop) -> Result<()>,
) -> Result<ExitCode> {
    match env::var(ID) {
        Ok(id) => {
            let stop = Stop::on_signal()?;
            perform(id, |sandbox| work(sandbox, &stop))
        }
        Err(_) => supervise(Some(grace)),
    }
}

/// Whether the work has been told to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Takes the signals from here on, by handlers: children would inherit a mask.
    fn on_signal() -> Result<Self> {
        let stop = Self::default();
        let told = Arc::clone(&stop.0);
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut interrupt, mut terminate, mut hang_up) = {
            let _inside = runtime.enter();
            let taken = |kind| signal(kind).context("cannot take signals");
            (taken(SignalKind::interrupt())?, taken(SignalKind::terminate())?, taken(SignalKind::hangup())?)
        };
        signals().thread_unblock().context("cannot unblock signals")?;
        thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hang_up.recv() => {}
                    }
                    told.store(true, Ordering::Relaxed);
                }
            })
        });
        Ok(stop)
    }

    /// Whether it has.
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

fn perform(id: String, work: impl FnOnce(&Sandbox) -> Result<()>) -> Result<ExitCode> {
    let _lock = lock(&folder(&id), WORK)?.context("another process does this run's work")?;
    work(&Sandbox { folder: folder(&id), id })?;
    Ok(ExitCode::SUCCESS)
}

fn supervise(grace: Option<Duration>) -> Result<ExitCode> {
    if !geteuid().is_root() {
        bail!("this makes network namespaces and loads eBPF programs, and needs root: run it with sudo");
    }
    sweep_abandoned(Kept::Spare)?;
    let id = std::process::id().to_string();
    let folder = folder(&id);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _lock = lock(&folder, SUPERVISOR)?.context("another run has this process id")?;
    signals().thread_block().context("cannot block signals")?;
    let executable = env::current_exe().context("own executable")?;
    let child = Command::new(executable)
        .args(env::args_os().skip(1))
        .env(ID, &id)
        .spawn()
        .context("cannot start the work");
    let outcome = child.and_then(|mut child| watch(&mut child, grace));
    let swept = if is_kept(&folder) { Ok(()) } else { sweep(&id) };
    let code = outcome?;
    swept?;
    Ok(code)
}

/// Whether sweeping takes runs that were left standing on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It leaves them.
    Spare,
    /// It takes them too.
    Sweep,
}

/// Sweeps every run whose supervisor is gone; returns how many there were.
pub fn sweep_abandoned(kept: Kept) -> Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(env::temp_dir()).context("temporary folder")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(id) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-'))
            && (kept == Kept::Sweep || !is_kept(&path))
            && let (Some(_supervisor), Some(_work)) = (lock(&path, SUPERVISOR)?, lock(&path, WORK)?)
        {
            sweep(id).with_context(|| format!("sweeping the abandoned run {id}"))?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// The folders of runs that were left standing on purpose.
pub fn kept() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(env::temp_dir()).context("temporary folder")?.flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    Ok(ours.map(|entry| entry.path()).filter(|path| is_kept(path)).collect())
}

/// Sweeps a run that was left standing on purpose, by its folder.
pub fn sweep_kept(run: &Path) -> Result<()> {
    let name = run.file_name().unwrap_or_default().to_string_lossy();
    let id = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-'));
    sweep(id.with_context(|| format!("{} is no run's folder", run.display()))?)
}

impl Sandbox {
    /// The prefix of every name that the run gives away on this machine.
    pub fn prefix(&self) -> String {
        prefix(&self.id)
    }

    /// The run's folder, for manifests, keys, logs and captures.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps a copy of the daemon's path, so that sweeping can call `ambit uninstall`.
    pub fn remember_binary(&self, binary: &Path) -> Result<()> {
        let link = self.folder.join(BINARY);
        let fresh = self.folder.join(format!("{BINARY}-{:?}", thread::current().id()));
        symlink(binary, &fresh)
            .and_then(|()| fs::rename(&fresh, &link))
            .with_context(|| link.display().to_string())
    }

    /// Leaves everything standing when the run ends; `cargo xtask clean` sweeps it.
    pub fn keep(&self) -> Result<()> {
        fs::write(self.folder.join("keep"), []).context("cannot mark the run as kept")
    }
}

/// Where the programs and maps of `node` are pinned.
pub fn pins(node: &str) -> PathBuf {
    Path::new(PINS).join(node)
}

fn watch(child: &mut Child, mut grace: Option<Duration>) -> Result<ExitCode> {
    let pid = Pid::from_raw(child.id().cast_signed());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(match (status.code(), status.signal()) {
                (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
                (None, signal) => {
                    eprintln!("the run was ended by signal {}; cleaning up", signal.unwrap_or_default());
                    ExitCode::from(128 + u8::try_from(signal.unwrap_or_default()).unwrap_or(0))
                }
            });
        }
        match signals().wait() {
            Ok(Signal::SIGCHLD) | Err(Errno::EINTR) => {}
            Ok(Signal::SIGALRM) => {
                eprintln!("the run does not conclude; cleaning up");
                let _ = kill(pid, Signal::SIGKILL);
            }
            Ok(_) if let Some(grace) = grace.take() => {
                let _ = kill(pid, Signal::SIGTERM);
                alarm::set(grace.as_secs().try_into().unwrap_or(u32::MAX));
            }
            Ok(signal) => {
                eprintln!("\nstopped by {signal}; cleaning up");
                let _ = kill(pid, Signal::SIGKILL);
                child.wait()?;
                return Ok(ExitCode::from(130));
            }
            Err(error) => return Err(error).context("waiting for signals"),
        }
    }
}

fn sweep(id: &str) -> Result<()> {
    let mut failures = Vec::new();
    let folder = folder(id);
    let mut note = |what: String, done: Result<()>| {
        if let Err(error) = done {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    for netns in Netns::with_prefix(&format!("{}-", prefix(id)))? {
        note(format!("namespace {}", netns.name()), netns.delete());
    }
    note("cgroups".to_owned(), cgroups::remove(&format!("{}-", prefix(id))));
    for node in pinned_nodes(id) {
        let name = node.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let binary = folder.join(BINARY);
        if binary.exists() {
            let _ =
                crate::process::must(Command::new(&binary).args(["uninstall", "--force", "--node", &name]));
        }
        // Programs detach with the last reference to their link, which is its pin.
        note(format!("pins of {name}"), remove(&node));
    }
    // What was killed just now may still be writing its last.
    note(folder.display().to_string(), crate::process::eventually(REMOVAL, || remove(&folder)));
    if failures.is_empty() { Ok(()) } else { bail!("left behind: {}", failures.join("; ")) }
}

fn pinned_nodes(id: &str) -> Vec<PathBuf> {
    let prefix = format!("{}-", prefix(id));
    let entries = fs::read_dir(PINS).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn is_kept(folder: &Path) -> bool {
    folder.join("keep").exists()
}

/// The lock `name` of a run, or `None` while its holder is alive.
fn lock(folder: &Path, name: &str) -> Result<Option<Flock<fs::File>>> {
    let file = match fs::File::create(folder.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| folder.display().to_string()),
    }
}

fn signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGALRM].into_iter().collect()
}

fn folder(id: &str) -> PathBuf {
    env::temp_dir().join(prefix(id))
}

fn prefix(id: &str) -> String {
    format!("{PREFIX}-{id}")
}
