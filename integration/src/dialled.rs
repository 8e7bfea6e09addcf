//! Connections that a test keeps up while something changes beneath them: one that lasts, and short ones without end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    load::{self, ports},
    process::Process,
    world::World,
};

/// Connections from one pod to the echo server of another.
#[derive(Debug)]
pub(crate) struct Dialled {
    /// One connection with round trips on it.
    pub(crate) long: Process,
    /// One connection after another.
    pub(crate) short: Process,
    started: Instant,
    limit: Duration,
}

impl Dialled {
    /// Starts both; each goes on for `seconds`, if it is not ended before.
    pub(crate) fn start(world: &World, from: &str, to: &str, seconds: u32) -> Result<Self> {
        let server = format!("{}:{}", world.pod(to).v4, ports::ECHO);
        let start = |tool: &[&str]| -> Result<Process> {
            let mut command = load::tool(&world.pod(from).netns)?;
            command.args(tool).args(["--to", &server, "--for-ms", &(seconds * 1000).to_string()]);
            Process::start(&mut command, &world.folder.join(format!("dialled-{}.log", tool[0])))
        };
        let long = start(&["ping-pong", "--rest-ms", "20"])?;
        let short = start(&["churn", "--count", "1000000", "--rest-ms", "5", "--until-eof"])?;
        let limit = Duration::from_secs(u64::from(seconds) + 15);
        Ok(Self { long, short, started: Instant::now(), limit })
    }

    /// Ends the short ones before their time.
    pub(crate) fn end(&mut self) {
        self.short.close_input();
    }

    /// Waits for the end of the short ones, demands that none has failed, and says how many there were.
    pub(crate) fn none_failed(&mut self) -> Result<u64> {
        self.short.wait(self.limit)?;
        let tally = told(&self.short)?;
        let good = tally["good"].as_u64().unwrap_or_default();
        ensure!(tally["failed"] == 0 && good > self.started.elapsed().as_secs() * 10, "{tally}");
        Ok(good)
    }

    /// Waits for the end of the long one, demands that it was never cut, and says how many round trips there were.
    pub(crate) fn lasted(&mut self) -> Result<u64> {
        let ended = self.long.wait(self.limit)?;
        ensure!(ended.success(), "the long connection did not last: {}", self.long.output());
        let rounds = told(&self.long)?["rounds"].as_u64().unwrap_or_default();
        ensure!(rounds > self.started.elapsed().as_secs() * 10, "only {rounds} round trips");
        Ok(rounds)
    }
}

fn told(tool: &Process) -> Result<Value> {
    let output = tool.output();
    serde_json::from_str(output.trim()).with_context(|| format!("the tool told: {output}"))
}
