//! What certificates cost: how many the CA service signs, and what an agent needs for many.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{ca::CaService, crowd::Crowd, sandbox::Sandbox, tools::Issued, world::World};

/// So many identities may be on one node, in the bench.
const IDENTITIES: usize = 1_000;
/// Until an agent has enrolled so many pods.
const ENROL_LIMIT: Duration = Duration::from_secs(500);

/// The figures.
#[derive(Clone, Debug, Serialize)]
pub struct Costs {
    /// One replica of the CA, asked over gRPC and TLS as often as it answers.
    pub one_replica: Issued,
    /// Two replicas over one CA.
    pub two_replicas: Issued,
    /// Identities that the agent held in the end, each of a pod of its own.
    pub identities: usize,
    /// The agent's resident memory with the scene's two pods, in KiB.
    pub few_kib: u64,
    /// The same with all of them.
    pub many_kib: u64,
}

impl Costs {
    /// Measures in a scene of its own; the CA is asked for `seconds` in each of the two ways.
    pub fn measure(
        sandbox: &Sandbox,
        binary: &Path,
        seconds: u32,
        mut progress: impl FnMut(&str),
    ) -> Result<Self> {
        let mut world = World::build(sandbox, "certs", binary, &[])?;
        let mut service = CaService::prepare(&world, &["--rate", "100000"])?;
        service.start()?;
        let identity = world.pod("a").identity();
        progress("one replica of the CA");
        let one_replica = service.load(1, &identity, seconds)?;
        progress("two replicas of the CA");
        let two_replicas = service.load(2, &identity, seconds)?;
        service.serve_agents(&mut world);
        world.start_agents()?;
        let few_kib = world.agents[0].resident_kib().context("the agent's memory")?;
        progress(&format!("{IDENTITIES} pods with an identity each"));
        let crowd = Crowd::build(&world, IDENTITIES)?;
        crowd.announce(&world)?;
        crowd.wait_certified(&world, ENROL_LIMIT)?;
        let many_kib = world.agents[0].resident_kib().context("the agent's memory")?;
        crowd.remove(&world)?;
        service.kill();
        world.remove()?;
        Ok(Self { one_replica, two_replicas, identities: IDENTITIES, few_kib, many_kib })
    }

    /// The figures in three lines.
    pub fn told(&self) -> String {
        let line = |what: &str, issued: &Issued| {
            let Issued { failed, p50_us, p99_us, .. } = issued;
            let rate = issued.per_second();
            format!("{what}: {rate:.0} certificates/s, p50 {p50_us} us, p99 {p99_us} us, {failed} failed\n")
        };
        let each = self.many_kib.saturating_sub(self.few_kib) as f64 / self.identities as f64;
        format!(
            "{}{}agent with {} pods and identities: {} KiB resident, {} KiB with two; {each:.1} KiB each",
            line("CA, one replica", &self.one_replica),
            line("CA, two replicas", &self.two_replicas),
            self.identities,
            self.many_kib,
            self.few_kib
        )
    }
}
