//! Data paths between two pods, measured in turn within one run: plaintext, ambit, and proxies that do the same work.
//!
//! Every load goes over every path in every round, so that what else the machine does hits all alike; what is told is medians
//! and their spread. Leaves building and fetching programs to `cargo xtask`.

mod compare;
mod envoy;
mod figures;
mod fresh;
mod haproxy;
mod html;
mod keys;
mod loads;
mod plot;
mod ports;
mod proxies;
mod results;
mod rules;
mod scene;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

pub use self::{
    compare::told as compared,
    loads::{LOADS, Load, QUICK, chosen},
    results::{Machine, Run},
    scene::{Choice, OTHER, PATHS},
};
use self::{figures::Figure, loads::Outcome, results::About, scene::Scene};
use crate::{
    console::Console,
    process,
    sandbox::{Sandbox, Stop},
};

/// Loads that begin with a fresh start take long: so many rounds of them suffice.
const FRESH_ROUNDS: u32 = 3;
/// About how long a scene takes to come up.
const BUILD: Duration = Duration::from_secs(8);

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The daemon.
    pub binary: PathBuf,
    /// The data paths.
    pub paths: Vec<Choice>,
    /// The folder of Envoy and HAProxy, where a path needs them.
    pub proxies: Option<PathBuf>,
    /// The loads.
    pub loads: Vec<Load>,
    /// How many rounds.
    pub rounds: u32,
    /// How long each load lasts, in seconds.
    pub seconds: u32,
    /// TCP's congestion control in pods and nodes; that of the machine if it is not given.
    pub congestion: Option<String>,
    /// Where the results go.
    pub out: PathBuf,
}

/// Measures until all is done, or `stop` tells; writes the results and tells them.
pub fn run(sandbox: &Sandbox, settings: &Settings, console: Console, stop: &Stop) -> Result<Run> {
    let mut run = Run::new(now()?, machine(settings)?, settings.rounds, settings.seconds);
    run.loads = settings.loads.iter().map(|load| about(load.name, load.about)).collect();
    let (until, steps) = (settings.takes(), settings.steps());
    console.line(format_args!(
        "{} loads over {} paths in {} rounds: about {}, until {}. Ctrl-C ends it with what there is.",
        settings.loads.len(),
        settings.paths.len(),
        settings.rounds,
        minutes(until),
        clock(until)?
    ));
    let mut scene = Scene::build(sandbox, settings, console)?;
    run.paths = scene.abouts();
    let mut progress =
        Progress { console, done: 0, steps, ends: Instant::now() + until.saturating_sub(BUILD) };
    for round in 1..=settings.rounds {
        for load in settings.loads.iter().filter(|load| settings.has(load, round)) {
            for path in scene.order(round) {
                if stop.is_told() {
                    run.interrupted = true;
                    break;
                }
                if scene.carries(path, load) {
                    measure(&mut scene, path, load, settings, round, (&mut run, &mut progress, stop));
                }
            }
        }
        run.write(&settings.out)?;
        if run.interrupted {
            console.line("\nstopped: what has been measured so far");
            break;
        }
    }
    scene.remove()?;
    console.line(format_args!("\n{}", table::told(&run)));
    console.line(format_args!(
        "report: {}\nfigures: {}",
        settings.out.join(HTML).display(),
        settings.out.join(JSON).display()
    ));
    ensure!(!run.results.is_empty(), "nothing was measured");
    Ok(run)
}

/// The file of a run's figures, in its folder.
const JSON: &str = "bench.json";
/// The file of its report.
const HTML: &str = "bench.html";

impl Run {
    /// Writes figures and report to the folder `out`.
    fn write(&self, out: &Path) -> Result<()> {
        fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        let write = |name: &str, text: String| {
            let file = out.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
        };
        write(JSON, serde_json::to_string_pretty(self)?)?;
        write(HTML, html::report(self))
    }
}

impl Settings {
    /// Whether a load is run in this round.
    fn has(&self, load: &Load, round: u32) -> bool {
        round <= self.rounds_of(load)
    }

    fn rounds_of(&self, load: &Load) -> u32 {
        if load.starts_afresh() { self.rounds.min(FRESH_ROUNDS) } else { self.rounds }
    }

    /// How many runs of a load there are, over all paths and rounds.
    fn steps(&self) -> u32 {
        let of = |load: &Load| {
            let paths = self.paths.iter().filter(|path| path.carries(load)).count();
            self.rounds_of(load) * u32::try_from(paths).unwrap_or(u32::MAX)
        };
        self.loads.iter().map(of).sum()
    }

    /// About how long all of it takes.
    fn takes(&self) -> Duration {
        let of = |load: &Load| {
            let paths = self.paths.iter().filter(|path| path.carries(load)).count();
            load.takes(self.seconds) * self.rounds_of(load) * u32::try_from(paths).unwrap_or(u32::MAX)
        };
        self.loads.iter().map(of).sum::<Duration>() + BUILD
    }
}

/// One data path alone, to be loaded by whoever looks at what carries it.
pub struct Loaded(Scene);

impl Loaded {
    /// Brings up the path `choice` with the daemon `binary`.
    pub fn build(sandbox: &Sandbox, binary: &Path, choice: &Choice, console: Console) -> Result<Self> {
        let settings = Settings {
            binary: binary.to_owned(),
            paths: vec![choice.clone()],
            proxies: None,
            loads: Vec::new(),
            rounds: 1,
            seconds: 1,
            congestion: None,
            out: PathBuf::new(),
        };
        Ok(Self(Scene::build(sandbox, &settings, console)?))
    }

    /// The processes that carry it.
    pub fn processes(&self) -> Result<Vec<u32>> {
        self.0.processes(0)
    }

    /// Runs a load for so many seconds; returns its figures in words.
    pub fn run(&mut self, load: &Load, seconds: u32) -> Result<String> {
        Ok(in_words(&once(&mut self.0, 0, load, seconds)?))
    }

    /// Takes everything down again.
    pub fn remove(self) -> Result<()> {
        self.0.remove()
    }
}

/// Tells of each run of a load as it ends.
struct Progress {
    console: Console,
    done: u32,
    steps: u32,
    ends: Instant,
}

impl Progress {
    fn told(&mut self, round: u32, load: &Load, path: &str, outcome: &str) {
        self.done += 1;
        let left = minutes(self.ends.saturating_duration_since(Instant::now()));
        let (done, steps) = (self.done, self.steps);
        self.console.line(format_args!(
            "[{done:>3}/{steps}, {left:>6} left] round {round}  {:<16} {path:<14} {outcome}",
            load.name
        ));
    }
}

fn measure(
    scene: &mut Scene,
    path: usize,
    load: &Load,
    settings: &Settings,
    round: u32,
    (run, progress, stop): (&mut Run, &mut Progress, &Stop),
) {
    let name = scene.name(path).to_owned();
    match once(scene, path, load, settings.seconds) {
        Ok(values) => {
            progress.told(round, load, &name, &in_words(&values));
            for (figure, value) in values {
                run.add(load.name, &name, figure, round, value);
            }
        }
        // What was cut short is no failure of the path's.
        Err(_) if stop.is_told() => {}
        Err(error) => {
            let error = format!("{error:#}");
            progress.told(round, load, &name, &format!("FAILED: {error}"));
            run.failures.push(results::Failure { load: load.name.to_owned(), path: name, round, error });
        }
    }
}

/// One run of a load: its figures, and the processor time of what carries the path for the work that was done.
fn once(scene: &mut Scene, path: usize, load: &Load, seconds: u32) -> Result<Vec<(&'static Figure, f64)>> {
    if load.starts_afresh() {
        return fresh::run(scene, path, load.kind);
    }
    let ends = scene.ends(path, load).clone();
    let before = scene.processor_time(path)?;
    let Outcome { mut values, work } = loads::run(load.kind, &ends, seconds, scene.scratch())?;
    // The last of it is done when the clients have gone.
    thread::sleep(Duration::from_millis(20));
    if let (Some((figure, amount)), Some(before), Some(after)) = (work, before, scene.processor_time(path)?)
        && amount > 0.0
    {
        values.push((figure, (after - before).as_secs_f64() / amount));
    }
    Ok(values)
}

fn in_words(values: &[(&'static Figure, f64)]) -> String {
    let told = values
        .iter()
        .map(|(figure, value)| format!("{} {} {}", figure.label, results::shown(*value), figure.unit));
    told.collect::<Vec<_>>().join(", ")
}

fn about(name: &str, about: &str) -> About {
    About { name: name.to_owned(), about: about.to_owned() }
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

fn now() -> Result<String> {
    Ok(process::must(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M:%S UTC"]))?.trim().to_owned())
}

/// The time of day after this.
fn clock(after: Duration) -> Result<String> {
    let then = format!("+{} seconds", after.as_secs());
    Ok(process::must(Command::new("date").args(["-d", &then, "+%H:%M"]))?.trim().to_owned())
}

fn machine(settings: &Settings) -> Result<Machine> {
    let read = |file: &str| fs::read_to_string(file).with_context(|| file.to_owned());
    let value = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|rest| rest.trim_matches([' ', '\t', ':']).to_owned())
    };
    let memory = value(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default();
    let load = read("/proc/loadavg")?;
    let congestion = match &settings.congestion {
        Some(asked) => asked.clone(),
        // What new network namespaces begin with.
        None => read("/proc/sys/net/ipv4/tcp_congestion_control")?.trim().to_owned(),
    };
    Ok(Machine {
        processor: value(&read("/proc/cpuinfo")?, "model name")
            .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        processors: thread::available_parallelism()?.get(),
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        congestion_control: congestion,
        memory_mib: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024,
        load_before: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
    })
}
