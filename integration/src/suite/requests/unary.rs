//! What a unary gRPC call costs the application it is made to.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{FILE, NO_ADMIN, in_force, nginx, policies};
use crate::{
    load,
    process::{self, Process, eventually},
    world::World,
};

const PORT: u16 = 8085;
const LIMIT: Duration = Duration::from_secs(30);
/// Answers over which packets are counted.
const CALLS: u64 = 300;

/// Head and message of a call are sent together, and so is what answers them: each packet more would wake the application once more.
pub(super) fn one_packet_each_way(world: &mut World) -> Result<()> {
    let _server = nginx(world, "b")?;
    world.manifests.write(FILE, &policies(&[NO_ADMIN]))?;
    in_force(world)?;
    let mut server = load::tool(&world.pod("b").netns)?;
    server.args(["grpc-server", "--listen", &format!("[::]:{PORT}")]);
    let mut server = Process::start(&mut server, &world.folder.join("grpc-server.log"))?;
    server.wait_for("ready", LIMIT)?;
    let mut client = load::tool(&world.pod("a").netns)?;
    client.args(["grpc-load", "--to", &format!("{}:{PORT}", world.pod("b").v4), "--for-ms", "60000"]);
    let mut client = Process::start(&mut client, &world.folder.join("grpc-load.log"))?;
    let (came, went) = eventually(LIMIT, || {
        ensure!(client.runs(), "the client has ended: {}", client.output());
        let packets = packets(world)?;
        ensure!(packets.1 >= CALLS, "{} answers so far", packets.1);
        Ok(packets)
    })?;
    client.kill();
    world.notes.push(format!("{came} packets to the application, {went} of it"));
    ensure!(came * 4 <= went * 5, "{came} packets came to the application for {went} that it answered with");
    Ok(())
}

/// Packets with data that the application's one connection has got and sent.
fn packets(world: &World) -> Result<(u64, u64)> {
    let filter = format!("sport = :{PORT}");
    let told =
        process::must(world.pod("b").netns.command("ss").args(["-Htin", "state", "established", &filter]))?;
    let count = |name: &str| {
        let words = told.split_whitespace().filter_map(|word| word.split_once(':'));
        let of = words.filter(|(of, _)| *of == name).filter_map(|(_, count)| count.parse::<u64>().ok());
        of.max().with_context(|| format!("no {name} in {told:?}"))
    };
    Ok((count("data_segs_in")?, count("data_segs_out")?))
}
