//! Measurements: data paths under load, two runs held against each other, what certificates and changes cost, and the agent in a
//! big cluster.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{
    bench::{self, Choice, LOADS, PATHS, QUICK, Run, Settings},
    changes::Changes,
    console::{self, Console},
    issuing::Costs,
    kube_suite::Kit,
    sandbox,
    scale::Scale,
};

/// How long a run that is told to stop may take to write down what it has.
const GRACE: Duration = Duration::from_secs(60);

/// What is measured, and how.
#[derive(clap::Args)]
pub struct Args {
    /// Loads, by name or how names begin, with commas between; all if none is named.
    #[arg(long, value_delimiter = ',')]
    loads: Vec<String>,
    /// Data paths, with commas between.
    #[arg(long, value_delimiter = ',')]
    paths: Vec<String>,
    /// A data path of one's own, NAME=CMD.
    #[arg(long)]
    path: Vec<String>,
    /// The folder of Envoy and HAProxy.
    #[arg(long)]
    proxies: Option<PathBuf>,
    /// Few loads, few paths, short rounds.
    #[arg(long)]
    quick: bool,
    /// How many rounds.
    #[arg(long)]
    rounds: Option<u32>,
    /// How long each load lasts, in seconds.
    #[arg(long)]
    seconds: Option<u32>,
    /// TCP's congestion control in pods and nodes.
    #[arg(long)]
    congestion: Option<String>,
    /// The folder of report and figures.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Lists loads and data paths, and measures nothing.
    #[arg(long)]
    list: bool,
    /// Holds two runs against each other, and measures nothing.
    #[arg(long, num_args = 2)]
    compare: Vec<PathBuf>,
    /// Measure what certificates cost instead.
    #[arg(long)]
    certificates: bool,
    /// Measure what one change costs in a big cluster instead.
    #[arg(long)]
    changes: bool,
    /// Measure this other daemon too.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Print JSON on stdout, and progress on stderr.
    #[arg(long)]
    json: bool,
    /// The daemon.
    #[arg(long, required_unless_present_any = ["list", "compare"])]
    binary: Option<PathBuf>,
}

/// What is measured in a big cluster, and how.
#[derive(clap::Args)]
pub struct KubeArgs {
    #[command(flatten)]
    kit: Kit,
    /// Print JSON on stdout, and progress on stderr.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let console = Console::new(args.json);
    if args.list {
        list(console);
        return Ok(ExitCode::SUCCESS);
    }
    if let [old, new] = args.compare.as_slice() {
        console.line(bench::compared(&Run::read(old)?, &Run::read(new)?));
        return Ok(ExitCode::SUCCESS);
    }
    let binary = args.binary.as_deref().context("--binary names the daemon")?;
    if args.certificates || args.changes {
        return sandbox::supervised(|sandbox| {
            let (figures, told) = if args.changes {
                let changes = Changes::measure(sandbox, binary, console)?;
                (json!({ "changes": changes }), changes.told())
            } else {
                let seconds = args.seconds.unwrap_or(5);
                let progress = |what: &str| console.line(format_args!("certificates: {what}"));
                let costs = Costs::measure(sandbox, binary, seconds, progress)?;
                (json!({ "seconds": seconds, "certificates": costs }), costs.told())
            };
            match args.json {
                true => console::answer(&figures),
                false => console.line(format_args!("\n{told}")),
            }
            Ok(())
        });
    }
    // What is wrong with them is to be told before anything is made.
    let settings = settings(args)?;
    sandbox::supervised_with_grace(GRACE, |sandbox, stop| {
        let run = bench::run(sandbox, &settings, console, stop)?;
        if args.json {
            console::answer(&serde_json::to_value(&run)?);
        }
        Ok(())
    })
}

/// Measures in a big cluster.
pub(super) fn run_kube(args: &KubeArgs) -> Result<ExitCode> {
    sandbox::supervised(|sandbox| {
        let console = Console::new(args.json);
        let scale = Scale::measure(sandbox, &args.kit, console)?;
        match args.json {
            true => console::answer(&json!({ "scale": scale })),
            false => console.line(format_args!("\n{}", scale.told())),
        }
        Ok(())
    })
}

fn settings(args: &Args) -> Result<Settings> {
    let named: Vec<&str> = match (args.paths.is_empty(), args.against.is_some(), args.quick) {
        // The other daemon is measured in any case.
        (false, against, _) => {
            args.paths.iter().map(String::as_str).filter(|name| !(against && *name == bench::OTHER)).collect()
        }
        (true, true, _) => vec!["plaintext", "ambit"],
        (true, false, true) => vec!["plaintext", "ambit", "envoy"],
        (true, false, false) => PATHS.iter().map(|(name, _)| *name).collect(),
    };
    let mut paths = named.into_iter().map(Choice::named).collect::<Result<Vec<_>>>()?;
    paths.extend(args.against.iter().cloned().map(Choice::Daemon));
    paths.extend(args.path.iter().map(|text| Choice::shell(text)).collect::<Result<Vec<_>>>()?);
    let loads = match args.loads.is_empty() && args.quick {
        true => bench::chosen(&QUICK.map(str::to_owned))?,
        false => bench::chosen(&args.loads)?,
    };
    Ok(Settings {
        binary: args.binary.clone().context("--binary names the daemon")?,
        paths,
        proxies: args.proxies.clone(),
        loads,
        rounds: args.rounds.unwrap_or(5),
        seconds: args.seconds.unwrap_or(if args.quick { 1 } else { 3 }),
        congestion: args.congestion.clone(),
        out: args.out.clone(),
    })
}

fn list(console: Console) {
    console.line("loads:");
    for load in LOADS {
        let quick = if QUICK.contains(&load.name) { " (also of --quick)" } else { "" };
        console.line(format_args!("  {:<16} {}{quick}", load.name, load.about));
    }
    console.line("\npaths:");
    for (name, about) in PATHS {
        console.line(format_args!("  {name:<16} {about}"));
    }
    console.line(format_args!("  {:<16} the agents of another daemon (--against)", bench::OTHER));
}
