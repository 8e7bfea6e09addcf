//! Bytes of many connections at once, each looked at in its place at both ends, with half-closes and resets among them.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{SECOND, Test, own, shared};
use crate::{
    load,
    process::{self, Process},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    shared("transfers::arrive_between_nodes", ABOUT, |world| arrive_some(world, "b")),
    own("transfers::arrive_where_it_is_joined", ABOUT, &["--local-traffic", "join"], |world| {
        arrive_some(world, "e")
    }),
    own("transfers::arrive_where_it_is_encrypted", ABOUT, &["--local-traffic", "encrypt"], |world| {
        arrive_some(world, "e")
    }),
    own("soak::ten_gigabytes_arrive_between_nodes", ABOUT, &[], |world| arrive(world, "b", MANY)),
    own("soak::ten_gigabytes_arrive_joined", ABOUT, &["--local-traffic", "join"], |world| {
        arrive(world, "e", MANY)
    }),
    own("soak::ten_gigabytes_arrive_encrypted", ABOUT, &["--local-traffic", "encrypt"], |world| {
        arrive(world, "e", MANY)
    }),
];

const ABOUT: &str =
    "every byte in its place, in pieces of random sizes, with half-closes and resets, over both families";

/// Mebibytes over each family.
const SOME: u32 = 256;
/// The same on a machine that is emulated: the agents have no more time there than elsewhere for a handshake beside the load.
const FEW: u32 = 48;
const MANY: u32 = 5 * 1024;
const PORT: u16 = 9010;

/// Has connections from pod a carry as many bytes to pod `to` as take less than a minute.
pub(super) fn arrive_some(world: &mut World, to: &str) -> Result<()> {
    arrive(world, to, if process::patience() > 1 { FEW } else { SOME })
}

/// Has connections from pod a carry so many bytes to pod `to`, over each family, and looks at each.
fn arrive(world: &mut World, to: &str, mebibytes: u32) -> Result<()> {
    let mut command = load::tool(&world.pod(to).netns)?;
    command.args(["transfer-server", "--listen", &format!("[::]:{PORT}")]);
    let mut server = Process::start(&mut command, &world.folder.join("transfers.log"))?;
    server.wait_for("ready", 5 * SECOND)?;
    for v6 in [false, true] {
        let address = match world.pod(to).ip(v6) {
            std::net::IpAddr::V4(ip) => format!("{ip}:{PORT}"),
            std::net::IpAddr::V6(ip) => format!("[{ip}]:{PORT}"),
        };
        // Ten megabytes a second is little, also beside other tests.
        let limit = 60 * SECOND + Duration::from_secs(u64::from(mebibytes) / 10);
        let seed = if v6 { "21" } else { "20" };
        let arguments =
            ["transfers", "--to", &address, "--seed", seed, "--mebibytes", &mebibytes.to_string()];
        let tally = world.tool("a", &arguments, limit)?;
        let failed = tally["failed"].as_array().map_or(usize::MAX, Vec::len);
        ensure!(failed == 0, "{failed} have failed: {tally:#}");
        world.notes.push(format!("{address}: {tally}"));
    }
    Ok(())
}
