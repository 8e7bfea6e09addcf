//! Bytes of many connections at once, each looked at in its place at both ends, with half-closes and resets among them.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{SECOND, Test, own, shared};
use crate::{load, process::Process, world::World};

pub(super) const TESTS: &[Test] = &[
    shared("transfers::arrive_between_nodes", ABOUT, |world| arrive(world, "b", SOME)),
    own("transfers::arrive_where_it_is_joined", ABOUT, &["--local-traffic", "join"], |world| {
        arrive(world, "e", SOME)
    }),
    own("transfers::arrive_where_it_is_encrypted", ABOUT, &["--local-traffic", "encrypt"], |world| {
        arrive(world, "e", SOME)
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
const MANY: u32 = 5 * 1024;
const PORT: u16 = 9010;

/// Has connections from pod a carry so many bytes to pod `to`, over each family, and looks at each.
pub(super) fn arrive(world: &mut World, to: &str, mebibytes: u32) -> Result<()> {
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
