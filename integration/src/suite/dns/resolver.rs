//! A resolver in a pod that no manifest tells of, with zones that hold answers of all kinds: BIND, or CoreDNS with the same ones.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    process::{self, Process, eventually},
    world::World,
};

/// The pod that is no pod.
const POD: &str = "x";
/// Until it answers.
const UP: Duration = Duration::from_secs(20);

pub(crate) struct Resolver {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
    pub(super) process: Process,
}

impl Resolver {
    /// BIND.
    pub(super) fn start(world: &mut World) -> Result<Self> {
        let folder = zones(world)?;
        let write =
            |name: &str, text: &str| fs::write(folder.join(name), text).with_context(|| name.to_owned());
        write("named.conf", &configuration(&folder))?;
        write("broken", "this is no zone\n")?;
        let mut command = world.pod(POD).netns.command("named");
        command.args(["-g", "-n", "1", "-c"]).arg(folder.join("named.conf"));
        Self::answering(world, &mut command, &folder)
    }

    /// CoreDNS.
    pub(crate) fn coredns(world: &mut World, program: &Path) -> Result<Self> {
        let folder = zones(world)?;
        let corefile = folder.join("Corefile");
        // There is no file of the third: all that is asked of it is answered with SERVFAIL.
        let zone = |name: &str, file: &str| {
            format!("{name}:53 {{\n file {} {{\n  reload 1h\n }}\n}}\n", folder.join(file).display())
        };
        let text = zone("example.test", "example")
            + &zone("cluster.local", "cluster")
            + &zone("broken.test", "none");
        fs::write(&corefile, text).context("Corefile")?;
        let mut command = world.pod(POD).netns.command(program);
        Self::answering(world, command.arg("-conf").arg(&corefile), &folder)
    }

    fn answering(world: &World, command: &mut Command, folder: &Path) -> Result<Self> {
        let pod = world.pod(POD);
        let process = Process::start(command, &folder.join("resolver.log"))?;
        let (v4, v6) = (pod.v4, pod.v6);
        let resolver = Self { v4, v6, process };
        eventually(UP, || {
            let mut dig = pod.netns.command("dig");
            let at = format!("@{v4}");
            let answer = process::must(dig.args([&at, "+short", "+tries=1", "+time=1", "h0.example.test"]))?;
            ensure!(answer.trim() == "192.0.2.0", "it answers {answer:?}");
            Ok(())
        })
        .with_context(|| resolver.process.output())?;
        Ok(resolver)
    }

    /// `/etc/resolv.conf` of a pod that asks it, as Kubernetes writes it.
    pub(super) fn configuration(&self, world: &World) -> Result<PathBuf> {
        let path = world.folder.join("resolv.conf");
        let text = format!(
            "nameserver {}\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:2\n",
            self.v4
        );
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.process.kill();
    }
}

/// Makes the pod, and the zones in a folder.
fn zones(world: &mut World) -> Result<PathBuf> {
    world.topology.add(POD, "nowhere", 1)?;
    let folder = world.folder.join("zones");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    fs::write(folder.join("example"), example()).context("example")?;
    fs::write(folder.join("cluster"), HEAD).context("cluster")?;
    Ok(folder)
}

const HEAD: &str =
    "$TTL 60\n@ IN SOA ns.example.test. root.example.test. 1 60 60 60 60\n@ IN NS ns.example.test.\n";

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    let zone =
        |name: &str, file: &str| format!("zone \"{name}\" {{ type master; file \"{folder}/{file}\"; }};\n");
    format!(
        "options {{ directory \"{folder}\"; pid-file none; session-keyfile none; recursion no; dnssec-validation no; \
         listen-on {{ any; }}; listen-on-v6 {{ any; }}; allow-query {{ any; }}; rrset-order {{ order none; }}; \
         answer-cookie no; tcp-clients 500; }};\ncontrols {{ }};\n{}{}{}",
        zone("example.test", "example"),
        zone("cluster.local", "cluster"),
        zone("broken.test", "broken")
    )
}

/// Names `h0` to `h999`, of ten kinds by their last digit.
fn example() -> String {
    let mut zone = format!("{HEAD}ns IN A 192.0.2.53\n");
    for number in 0..1_000 {
        let (high, low) = (number / 250, number % 250);
        let _ = match number % 10 {
            0 | 1 | 9 => writeln!(zone, "h{number} IN A 192.0.{}.{low}", high + 2),
            2 => writeln!(zone, "h{number} IN AAAA 2001:db8::{number}"),
            3 => (1..5).try_for_each(|step| {
                let from = if step == 1 { format!("h{number}") } else { format!("c{step}.h{number}") };
                match step {
                    4 => writeln!(zone, "{from} IN A 192.0.2.4"),
                    _ => writeln!(zone, "{from} IN CNAME c{}.h{number}", step + 1),
                }
            }),
            // 4 does not exist, and 5 is asked for in the broken zone.
            6 => (0..60).try_for_each(|last| writeln!(zone, "h{number} IN A 192.0.2.{last}")),
            7 => {
                let text = format!("\"{}\" ", "x".repeat(200)).repeat(20);
                writeln!(zone, "h{number} IN TXT ( {text} )")
            }
            8 => writeln!(
                zone,
                "h{number} IN MX 10 mail{low}\nh{number} IN SRV 1 2 {} target{low}",
                1_000 + number
            ),
            _ => Ok(()),
        };
    }
    zone
}
