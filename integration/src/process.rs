//! Child processes with a bound on every wait: one that runs to its end, and one that stays until dropped.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::{Pid, SysconfVar, sysconf},
};

const POLL: Duration = Duration::from_millis(5);

/// How many times as long every limit is as it says: more than once where a machine is emulated.
pub const PATIENCE: &str = "AMBIT_TEST_PATIENCE";

/// What [`PATIENCE`] says.
pub fn patience() -> u32 {
    static TIMES: LazyLock<u32> = LazyLock::new(|| {
        std::env::var(PATIENCE).ok().and_then(|times| times.parse().ok()).unwrap_or(1).max(1)
    });
    *TIMES
}

/// The end of a wait that has this limit, on this machine.
pub fn deadline(limit: Duration) -> Instant {
    Instant::now() + limit * patience()
}

/// What a finished command left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// The command line, for messages.
    pub command: String,
}

impl Finished {
    /// Its standard output, if it succeeded; otherwise an error with everything it said.
    pub fn ok(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        bail!("{}", self.told())
    }

    /// Command, end and output in a few lines, for messages.
    pub fn told(&self) -> String {
        let end = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        let shorten = |text: &str| text.trim_end().chars().take(2_000).collect::<String>();
        format!("{}: {end}\n{}{}", self.command, shorten(&self.stdout), shorten(&self.stderr))
    }
}

/// Runs `command` to its end; one that takes longer than `limit` is killed and is an error.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    run_with_input(command, "", limit)
}

/// As [`run`], with `input` on its standard input.
pub fn run_with_input(command: &mut Command, input: &str, limit: Duration) -> Result<Finished> {
    let line = shown(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {line}"))?;
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_owned();
        // A child that ends without reading breaks the pipe; its exit status tells the story.
        thread::spawn(move || {
            let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
        });
    }
    let status = match wait_until(&mut child, deadline(limit))? {
        Some(status) => status,
        None => {
            child.kill()?;
            child.wait()?;
            bail!("{line}: not done after {limit:?}; stderr: {}", join(stderr).trim_end());
        }
    };
    Ok(Finished { status, stdout: join(stdout), stderr: join(stderr), command: line })
}

/// Runs `command` for at most ten seconds and demands success.
pub fn must(command: &mut Command) -> Result<String> {
    run(command, Duration::from_secs(10))?.ok()
}

/// A process in the background, its output in a file. Dropping kills it and waits for its end.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    /// How much of the log is older than the process.
    older: usize,
    command: String,
}

impl Process {
    /// Starts `command` with stdout and stderr appended to the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let line = shown(command);
        let file = File::options().create(true).append(true).open(log).with_context(|| format!("{log:?}"))?;
        let older = file.metadata().map_or(0, |metadata| metadata.len().try_into().unwrap_or(usize::MAX));
        // An open standard input that nothing comes from: some servers leave when theirs ends.
        let child = command
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {line}"))?;
        Ok(Self { child, log: log.to_owned(), older, command: line })
    }

    /// The process id. `nsenter` executes its program in place, so it is the program's own.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, on both streams. What others have left in its log is not its own.
    pub fn output(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.older..).unwrap_or_default()).into_owned()
    }

    /// Waits until its output contains `text`.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = deadline(limit);
        loop {
            let output = self.output();
            if output.contains(text) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before it said {text:?}: {}", self.command, tail(&output));
            }
            if Instant::now() > deadline {
                bail!("{} has not said {text:?} within {limit:?}: {}", self.command, tail(&output));
            }
            thread::sleep(POLL);
        }
    }

    /// Ends its standard input.
    pub fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends `signal`; one that has ended already is no error.
    pub fn signal(&mut self, signal: Signal) {
        if self.runs() {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait_until(&mut self.child, deadline(limit))?
            .with_context(|| format!("{} has not ended within {limit:?}", self.command))
    }

    /// Sends SIGKILL to all of the process group that it leads, and waits for its end.
    pub fn kill_group(&mut self) {
        if self.runs() {
            let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        }
        self.kill();
    }

    /// Sends SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(pid: i32) -> Result<u64> {
    status_kib(pid, "VmRSS:")
}

/// The same without what it shares with the kernel's cache of files: code and constants.
pub fn own_kib(pid: i32) -> Result<u64> {
    status_kib(pid, "RssAnon:")
}

fn status_kib(pid: i32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Processor time of a process so far, its own and the kernel's for it (proc_pid_stat(5), fields 14 and 15).
pub fn cpu_time(pid: i32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name")?;
    let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().map_err(Into::into));
    let ticks = ticks.sum::<Result<u64>>()?;
    let each = sysconf(SysconfVar::CLK_TCK)?.and_then(|rate| u64::try_from(rate).ok());
    let each = each.context("no CLK_TCK")?;
    Ok(Duration::from_millis(ticks * 1_000 / each))
}

/// Processor time so far of a process and of all others in its process group, with those that have ended and been waited for
/// (proc_pid_stat(5), fields 14 to 17), and their resident memory, in KiB.
pub fn group_use(leader: u32) -> Result<(Duration, u64)> {
    let each =
        sysconf(SysconfVar::CLK_TCK)?.and_then(|rate| u64::try_from(rate).ok()).context("no CLK_TCK")?;
    let (mut ticks, mut resident) = (0, 0);
    for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // A process may end meanwhile.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = fields.split(' ').collect();
        if pid.cast_unsigned() == leader || fields.get(2).and_then(|group| group.parse().ok()) == Some(leader)
        {
            ticks +=
                fields.iter().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
            resident += resident_kib(pid).unwrap_or(0);
        }
    }
    Ok((Duration::from_millis(ticks * 1_000 / each), resident))
}

/// The last lines of a text, each cut where it gets too long for a message.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(15)..];
    last.iter().map(|line| format!("\n{}", line.chars().take(400).collect::<String>())).collect()
}

/// Tries `probe` until it yields a value; after `limit` its last error is the error.
pub fn eventually<T>(limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = deadline(limit);
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("still so after {limit:?}")));
            }
            Err(_) => thread::sleep(4 * POLL),
        }
    }
}

fn wait_until(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

fn reader(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn join(reader: thread::JoinHandle<String>) -> String {
    reader.join().unwrap_or_default()
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_taken_for_the_one_before() {
        let log = std::env::temp_dir().join(format!("ambit-process-{}.log", std::process::id()));
        let second = Duration::from_secs(1);
        let mut first = Process::start(Command::new("echo").arg("ready"), &log).unwrap();
        first.wait_for("ready", second * 10).unwrap();
        let mut next = Process::start(Command::new("sh").args(["-c", "echo up; read _"]), &log).unwrap();
        next.wait_for("up", second * 10).unwrap();
        next.wait_for("ready", second / 5).unwrap_err();
        assert_eq!(next.output(), "up\n");
        fs::remove_file(log).unwrap();
    }
}
