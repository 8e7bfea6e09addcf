//! `cargo xtask bench`: the demo's load at length, ambit and direct in turn, medians.

use std::{path::PathBuf, process::ExitCode};

use ambit_integration::{
    changes::Changes,
    console::Console,
    issuing::Costs,
    kube_suite::Kit,
    load::{Figures, median, side_by_side},
    sandbox,
    scale::Scale,
    world::World,
};
use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{build, demo::table, kube, setup};

/// Measure throughput, round trip and rates through the tunnel against plaintext, in several rounds. Needs root.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask bench\n  cargo xtask bench --rounds 9 --seconds 10\n  \
    cargo xtask bench --certificates     the CA and the agent's memory alone\n  \
    cargo xtask bench --kube             the agent in a Kubernetes of 10,000 pods\n  \
    cargo xtask bench --changes          what a change of one pod or policy costs among 10,000 pods\n  \
    cargo xtask bench --json > figures.json")]
pub(crate) struct Args {
    /// How many rounds; each measures both ways, and the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each of the five loads lasts, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Measure only what certificates cost.
    #[arg(long)]
    certificates: bool,
    /// Measure the agent in a big cluster instead: memory and processor at rest, time from a change to its effect.
    #[arg(long, conflicts_with_all = ["certificates", "rounds", "seconds"])]
    kube: bool,
    /// Measure what one change costs in a big cluster instead: processor time, system calls on maps, connections judged again.
    #[arg(long, conflicts_with_all = ["certificates", "rounds", "seconds", "kube"])]
    changes: bool,
    /// Print JSON on stdout, and progress on stderr.
    #[arg(long)]
    json: bool,
    /// Use this binary instead of building one.
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.kube {
        return run_kube(args);
    }
    let prepare = || {
        setup::programs()?;
        build::daemon_or(args.binary.as_deref())
    };
    sandbox::supervised(prepare, |sandbox, binary: PathBuf| {
        let console = Console::new(args.json);
        if args.changes {
            let changes = Changes::measure(sandbox, &binary, console)?;
            match args.json {
                true => println!("{:#}", json!({ "changes": changes })),
                false => console.line(format_args!("\n{}", changes.told())),
            }
            return Ok(());
        }
        let progress = |what: &str| console.line(format_args!("certificates: {what}"));
        let certificates = Costs::measure(sandbox, &binary, args.seconds, progress)?;
        if args.certificates {
            match args.json {
                true => println!("{:#}", json!({ "seconds": args.seconds, "certificates": certificates })),
                false => console.line(format_args!("\n{}", certificates.told())),
            }
            return Ok(());
        }
        let world = World::start(sandbox, "bench", &binary, &[])?;
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
            let report = json!({
                "rounds": args.rounds,
                "seconds": args.seconds,
                "direct": median(&direct),
                "ambit": median(&ambit),
                "all": { "direct": direct, "ambit": ambit },
                "certificates": certificates,
                "agent_resident_kib": { "idle": memory_idle, "after_load": memory_loaded },
            });
            println!("{report:#}");
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

fn run_kube(args: &Args) -> Result<ExitCode> {
    let prepare = || kube::kit(None, args.binary.as_deref(), &[]);
    sandbox::supervised(prepare, |sandbox, kit: Kit| {
        let console = Console::new(args.json);
        let scale = Scale::measure(sandbox, &kit, console)?;
        match args.json {
            true => println!("{:#}", json!({ "scale": scale })),
            false => console.line(format_args!("\n{}", scale.told())),
        }
        Ok(())
    })
}

/// Resident KiB of both agents.
fn resident(world: &World) -> Result<Vec<u64>> {
    world.agents.iter().map(|agent| agent.resident_kib().context("the agent's memory")).collect()
}
