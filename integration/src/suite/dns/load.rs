//! Questions without end: through an agent that has one processor, while the clients and the resolver have the other. What the
//! kernel dropped before a full socket is told apart by whose socket it was.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{HOST, Resolver, allocated, entry};
use crate::{
    netns::Netns,
    process::{self, cpu_time, run},
    world::World,
};

/// How long each client asks.
const SECONDS: u32 = 5;
/// Questions that have no answer yet. Not more than the kernel keeps for a resolver that a busy machine holds up.
const WAITING: &str = "50";
/// Until a question counts as lost: what is only late on a busy machine is not lost. The agent waits for longer.
const PATIENCE: &str = "14";

pub(super) fn carried(world: &mut World) -> Result<()> {
    let resolver = Resolver::start(world)?;
    entry(world, "")?;
    allocated(world, &resolver)?;
    let questions = world.folder.join("questions");
    fs::write(&questions, mixed())?;
    let agent = world.agents[0].pid()?;
    let alone = thread::available_parallelism().is_ok_and(|processors| processors.get() > 1);
    if alone {
        confine(agent, "0")?;
        confine(resolver.process.id(), "1")?;
    }
    for (what, clients) in [("one client", "1"), ("many clients", "50")] {
        let before = (Dropped::now(world)?, cpu_time(agent.cast_signed())?);
        let told = ask(world, &resolver, &questions, clients, alone)?;
        let dropped = Dropped::now(world)?.since(&before.0);
        let busy = cpu_time(agent.cast_signed())?.saturating_sub(before.1);
        let (sent, lost) = (count(&told, "Queries sent:")?, count(&told, "Queries lost:")?);
        let rate = count(&told, "Queries per second:")?;
        let share = busy.as_secs_f64() / f64::from(SECONDS);
        world.notes.push(format!(
            "{what}: {rate:.0} a second, {lost} of {sent} lost, {} before the resolver's socket; the agent took {:.0} % of a processor",
            dropped.resolver,
            100.0 * share
        ));
        // One that the resolver's own socket had no room for is lost without an agent, too.
        ensure!(lost <= dropped.resolver, "{what}: {dropped:?}: {told}");
        ensure!(dropped.pod == 0.0, "{what}: sockets in the pod had no room: {dropped:?}: {told}");
        ensure!(rate > least() * asked(), "{what}: {rate} a second: {told}");
    }
    let metrics = world.agents[0].metrics()?;
    for result in ["refused", "dropped"] {
        let count = metrics.sum("ambit_dns_messages_total", &[&format!("result=\"{result}\"")]);
        ensure!(count == 0.0, "{count} {result}");
    }
    Ok(())
}

/// Of ten questions nine are the resolver's to answer, and one the agent's.
fn mixed() -> String {
    let question = |number: u32| match number % 10 {
        5 => format!("{HOST} A\n"),
        _ => format!("h{}.example.test A\n", number / 10 * 10),
    };
    (0..1_000).map(question).collect()
}

fn ask(world: &World, resolver: &Resolver, questions: &Path, clients: &str, alone: bool) -> Result<String> {
    let netns = &world.pod("a").netns;
    let mut command = netns.command(if alone { "taskset" } else { "dnsperf" });
    if alone {
        command.args(["-c", "1", "dnsperf"]);
    }
    command.args(["-s", &resolver.v4.to_string(), "-d"]).arg(questions);
    command.args(["-l", &SECONDS.to_string(), "-Q", &asked().to_string(), "-c", clients]);
    run(command.args(["-q", WAITING, "-t", PATIENCE]), Duration::from_secs(60))?.ok()
}

/// Has a process, with all its threads, run on one processor.
fn confine(pid: u32, processor: &str) -> Result<()> {
    let mut taskset = std::process::Command::new("taskset");
    process::must(taskset.args(["--all-tasks", "--cpu-list", "--pid", processor, &pid.to_string()])).map(drop)
}

/// The number behind a word of dnsperf's.
fn count(told: &str, word: &str) -> Result<f64> {
    let line = told.lines().find_map(|line| line.trim().strip_prefix(word));
    let number = line.and_then(|line| line.split_whitespace().next()).with_context(|| told.to_owned())?;
    number.parse().with_context(|| number.to_owned())
}

/// Datagrams that sockets had no room for, since their network namespace was made.
#[derive(Debug)]
struct Dropped {
    /// Of the pod that asks: dnsperf's sockets and the agent's.
    pod: f64,
    /// Of the resolver's.
    resolver: f64,
}

impl Dropped {
    fn now(world: &World) -> Result<Self> {
        Ok(Self { pod: dropped(&world.pod("a").netns)?, resolver: dropped(&world.pod("x").netns)? })
    }

    fn since(&self, before: &Self) -> Self {
        Self { pod: self.pod - before.pod, resolver: self.resolver - before.resolver }
    }
}

/// `RcvbufErrors` of UDP, of both families.
fn dropped(netns: &Netns) -> Result<f64> {
    let all = process::must(netns.command("nstat").args(["-asz", "UdpRcvbufErrors", "Udp6RcvbufErrors"]))?;
    let counts = all.lines().filter(|line| line.contains("RcvbufErrors"));
    let numbers =
        counts.map(|line| line.split_whitespace().nth(1).and_then(|number| number.parse::<f64>().ok()));
    numbers.sum::<Option<f64>>().with_context(|| all.clone())
}

/// Questions a second: what an agent without optimisation can bear beside everything else on two cores, or what `AMBIT_DNS_RATE`
/// says.
fn asked() -> f64 {
    rate().unwrap_or(2_000.0)
}

/// The part of them that has to be reached: all of it where a rate is asked for.
fn least() -> f64 {
    if rate().is_some() { 0.97 } else { 0.5 }
}

fn rate() -> Option<f64> {
    std::env::var("AMBIT_DNS_RATE").ok()?.parse().ok()
}
