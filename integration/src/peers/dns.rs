//! CoreDNS as the resolver of a pod whose DNS is captured.

use anyhow::Result;

use super::{Stage, Test};
use crate::{
    cluster::COREDNS,
    suite::dns::{Resolver, passes_a_thousand},
    world::World,
};

pub(super) const TESTS: &[Test] = &[Test {
    name: "peers::coredns_is_heard_byte_for_byte",
    about: "a thousand names of all kinds, CNAME chains to truncation and SERVFAIL, by UDP and TCP, IPv4 and IPv6",
    work: coredns,
}];

fn coredns(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    for agent in &mut world.agents {
        agent.add_flags(&["--dns-capture", "on"]);
    }
    world.start_agents()?;
    let resolver = Resolver::coredns(world, &stage.kit.kube_programs.path(COREDNS))?;
    passes_a_thousand(world, &resolver)
}
