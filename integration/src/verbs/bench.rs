//! The demo's load at length, ambit and direct in turn, medians; and the agent in a big cluster.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::demo::table;
use crate::{
    changes::Changes,
    comparison::Comparison,
    console::{self, Console},
    issuing::Costs,
    kube_suite::Kit,
    load::{Figures, median, side_by_side},
    sandbox,
    scale::Scale,
    world::World,
};

/// What is measured, and how.
#[derive(clap::Args)]
pub struct Args {
    /// How many rounds; each measures both ways, and the median counts.
    #[arg(long)]
    rounds: u32,
    /// How long each of the five loads lasts, in seconds.
    #[arg(long)]
    seconds: u32,
    /// Measure only what certificates cost.
    #[arg(long)]
    certificates: bool,
    /// Measure what one change costs in a big cluster instead.
    #[arg(long)]
    changes: bool,
    /// Compare with this other daemon instead.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Print JSON on stdout, and progress on stderr.
    #[arg(long)]
    json: bool,
    /// The daemon.
    #[arg(long)]
    binary: PathBuf,
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
    sandbox::supervised(|sandbox| {
        let binary = &args.binary;
        let console = Console::new(args.json);
        if args.changes {
            let changes = Changes::measure(sandbox, binary, console)?;
            match args.json {
                true => console::answer(&json!({ "changes": changes })),
                false => console.line(format_args!("\n{}", changes.told())),
            }
            return Ok(());
        }
        if let Some(old) = &args.against {
            let daemons = (binary.as_path(), old.as_path());
            let compared = Comparison::measure(sandbox, daemons, args.rounds, args.seconds, console)?;
            match args.json {
                true => console::answer(&json!({ "comparison": compared })),
                false => console.line(format_args!("\n{}", compared.told())),
            }
            return Ok(());
        }
        let progress = |what: &str| console.line(format_args!("certificates: {what}"));
        let certificates = Costs::measure(sandbox, binary, args.seconds, progress)?;
        if args.certificates {
            match args.json {
                true => console::answer(&json!({ "seconds": args.seconds, "certificates": certificates })),
                false => console.line(format_args!("\n{}", certificates.told())),
            }
            return Ok(());
        }
        let world = World::start(sandbox, "bench", binary, &[])?;
        world.must_reach("a", "b")?;
        let memory_idle = resident(&world)?;
        let (mut direct, mut ambit): (Vec<Figures>, Vec<Figures>) = (Vec::new(), Vec::new());
        for round in 1..=args.rounds {
            let ways = [("direct", world.lane("c", "d")), ("ambit", world.lane("a", "b"))];
            let measured = side_by_side(ways, args.seconds, |load, way| {
                console.line(format_args!("round {round}/{}: {load}, {way}", args.rounds));
            })?;
            direct.push(measured[0]);
            ambit.push(measured[1]);
        }
        let memory_loaded = resident(&world)?;
        if args.json {
            console::answer(&json!({
                "rounds": args.rounds,
                "seconds": args.seconds,
                "direct": median(&direct),
                "ambit": median(&ambit),
                "all": { "direct": direct, "ambit": ambit },
                "certificates": certificates,
                "agent_resident_kib": { "idle": memory_idle, "after_load": memory_loaded },
            }));
        } else {
            console.line(format_args!("\n{}", table(&median(&direct), &median(&ambit))));
            console.line(format_args!("{}", certificates.told()));
            console.line(format_args!(
                "agents' memory, KiB: {memory_idle:?} idle, {memory_loaded:?} after load"
            ));
        }
        world.remove()
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

/// Resident KiB of both agents.
fn resident(world: &World) -> Result<Vec<u64>> {
    world.agents.iter().map(|agent| agent.resident_kib().context("the agent's memory")).collect()
}
