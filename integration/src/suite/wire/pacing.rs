//! Which congestion control the legs of a connection have, where that of the machine paces.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    process::{self, Process, eventually},
    topology::Pod,
    world::World,
};

const PORT: u16 = 9_960;
const SETTING: &str = "net.ipv4.tcp_congestion_control";
const PACED: &str = "bbr";
const UNPACED: &str = "reno";

const SERVER: &str = "import socket, sys
s = socket.create_server(('', int(sys.argv[1])))
print('listens', flush=True)
s, _ = s.accept()
s.sendall(s.recv(9))
s.recv(9)
";
const CLIENT: &str = "import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.sendall(b'question')
print(s.recv(9), flush=True)
sys.stdin.read()
";

/// Holds a connection between two pods that are to pace, and looks at all of its sockets.
pub(super) fn legs(world: &mut World) -> Result<()> {
    if !fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")?.contains(PACED) {
        world.notes.push(format!("this kernel has no {PACED}"));
        return Ok(());
    }
    let (client, server) = (world.pod("a"), world.pod("b"));
    let before = process::must(client.netns.command("sysctl").args(["-n", SETTING]))?;
    let set = |algorithm: &str| {
        [client, server].iter().try_for_each(|pod| pod.netns.sysctl(&[&format!("{SETTING}={algorithm}")]))
    };
    set(PACED)?;
    let looked = look(world, client, server);
    set(before.trim())?;
    looked
}

fn look(world: &World, client: &Pod, server: &Pod) -> Result<()> {
    let soon = Duration::from_secs(5);
    let start = |pod: &Pod, program: &str, arguments: &[String], ready: &str| {
        let mut command = pod.netns.command("python3");
        let log = world.folder.join(format!("pacing-{}.log", pod.name));
        let mut process = Process::start(command.args(["-c", program]).args(arguments), &log)?;
        process.wait_for(ready, soon)?;
        anyhow::Ok(process)
    };
    let _server = start(server, SERVER, &[PORT.to_string()], "listens")?;
    let mut held = start(client, CLIENT, &[server.v4.to_string(), PORT.to_string()], "question")?;
    let own = format!("{}:", client.v4);
    let inside = |ends: &[&str]| ends.iter().all(|end| end.starts_with(&own));
    let target = format!("{}:{PORT}", server.v4);
    let to_target = |ends: &[&str]| ends.contains(&target.as_str());
    eventually(soon, || {
        // Between application and agent; then the tunnel.
        has(client, inside, &[UNPACED, UNPACED])?;
        has(client, to_target, &[PACED])?;
        // The tunnel, and both ends between agent and application.
        has(server, to_target, &[PACED, UNPACED, UNPACED])
    })?;
    held.close_input();
    held.wait(soon).map(drop)
}

/// Demands these algorithms of a pod's connections whose two addresses are as wanted.
fn has(pod: &Pod, wanted: impl Fn(&[&str]) -> bool, expected: &[&str]) -> Result<()> {
    let listed = process::must(pod.netns.command("ss").args(["-tinOH", "state", "established"]))?;
    let mut found = Vec::new();
    for line in listed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ends = words.get(2..4).with_context(|| format!("no addresses in {line:?}"))?;
        if wanted(ends) {
            let name = words.iter().find(|word| [PACED, UNPACED].contains(word));
            found.push(*name.with_context(|| format!("another algorithm in {line:?}"))?);
        }
    }
    found.sort_unstable();
    ensure!(found == expected, "pod {} has {found:?}, not {expected:?}, of\n{listed}", pod.name);
    Ok(())
}
