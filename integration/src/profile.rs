//! Where the agents' time goes under a load: perf's samples of both agents as a flame graph and as a list.
//!
//! Leaves a binary whose stacks can be walked (frame pointers, symbols) to `cargo xtask`.

mod areas;
mod flame;
mod stacks;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use self::stacks::Stacks;
use crate::{
    bench::{Choice, Load, Loaded},
    console::Console,
    process::{self, Process},
    sandbox::Sandbox,
};

/// Samples a second on each processor: prime, so that nothing periodic hides from it.
const FREQUENCY: &str = "997";
/// The most symbols that are listed.
const LISTED: usize = 40;
const LIMIT: Duration = Duration::from_secs(180);

/// What is profiled, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The daemon, with symbols and frame pointers.
    pub binary: PathBuf,
    /// The load.
    pub load: Load,
    /// What lies between client and server, with agents of that daemon.
    pub path: Choice,
    /// For so many seconds.
    pub seconds: u32,
    /// Where flame graph, list and stacks go.
    pub out: PathBuf,
}

/// Runs the load and writes `LOAD.svg`, `LOAD.txt` and `LOAD.folded`.
pub fn run(sandbox: &Sandbox, settings: &Settings, console: Console) -> Result<()> {
    let Settings { binary, load, path, seconds, out } = settings;
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let mut loaded = Loaded::build(sandbox, binary, path, console)?;
    console.line(format_args!("  (warming up, then {} for {seconds} s)", load.about));
    loaded.run(load, 1)?;
    let data = sandbox.folder().join("perf.data");
    let mut perf = record(&loaded.processes()?, &data, sandbox.folder())?;
    let told = loaded.run(load, *seconds)?;
    perf.signal(Signal::SIGINT);
    perf.wait(LIMIT)?;
    loaded.remove()?;
    let folded = Stacks::read(&script(&data)?);
    ensure!(folded.samples() > 0, "perf took no samples: {}", process::tail(&perf.output()));
    let title =
        format!("{}: {} ({} samples of both agents; {told})", load.name, load.about, folded.samples());
    let file = |suffix: &str| out.join(format!("{}.{suffix}", load.name));
    let write = |suffix: &str, text: &str| {
        fs::write(file(suffix), text).with_context(|| file(suffix).display().to_string())
    };
    write("svg", &flame::graph(&folded, &title))?;
    write("folded", &folded.told())?;
    let list = format!("{title}\n\n{}\n{}", areas::told(&folded), folded.top(LISTED));
    write("txt", &list)?;
    console.line(format_args!("\n{list}"));
    console.line(format_args!("flame graph: {}\nlist: {}", file("svg").display(), file("txt").display()));
    Ok(())
}

/// Whether perf can be called at all.
pub fn must_have_perf() -> Result<()> {
    let found = Command::new("perf").arg("--version").output();
    ensure!(
        found.is_ok_and(|output| output.status.success()),
        "there is no working perf; on Debian, the package linux-perf has it"
    );
    Ok(())
}

fn record(processes: &[u32], data: &Path, scratch: &Path) -> Result<Process> {
    let list = processes.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut command = Command::new("perf");
    command.args(["record", "--call-graph", "fp", "-F", FREQUENCY, "-p", &list, "-o"]).arg(data);
    let mut perf = Process::start(&mut command, &scratch.join("perf.log"))?;
    // It tells of nothing when it begins, and is soon ready.
    std::thread::sleep(Duration::from_millis(500));
    ensure!(perf.runs(), "perf: {}", process::tail(&perf.output()));
    Ok(perf)
}

fn script(data: &Path) -> Result<String> {
    let mut command = Command::new("perf");
    // Asking for inlined functions would take minutes.
    command.args(["script", "--no-inline", "-F", "comm,pid,tid,time,event,ip,sym,dso", "-i"]).arg(data);
    process::run(&mut command, LIMIT)?.ok()
}
