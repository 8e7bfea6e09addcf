//! Named network namespaces: made, entered, deleted together with the processes in them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::process;

const FOLDER: &str = "/run/netns";

/// A network namespace under `/run/netns`. It is not deleted on drop: its sandbox does that.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes the namespace, with loopback up.
    pub fn create(name: &str) -> Result<Self> {
        process::must(ip().args(["netns", "add", name]))?;
        let netns = Self { name: name.to_owned() };
        // Addresses are usable at once, not after a second of duplicate address detection.
        netns.sysctl(&["net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"])?;
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// The namespace of that name, which somebody else makes.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Every namespace whose name starts with `prefix`.
    pub fn with_prefix(prefix: &str) -> Result<Vec<Self>> {
        let entries = match std::fs::read_dir(FOLDER) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(FOLDER),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter(|name| name.starts_with(prefix)).map(|name| Self { name }).collect())
    }

    /// Its name, as in `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// A command that runs `program` in it. Unlike `ip netns exec`, this leaves /sys as it is: cgroups and the bpf
    /// file system stay in sight.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `ip` with `args` in it.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        process::must(ip().args(["-n", &self.name]).args(args))
    }

    /// Sets kernel parameters, each `name=value`, in it.
    pub fn sysctl(&self, settings: &[&str]) -> Result<()> {
        process::must(self.command("sysctl").arg("-qw").args(settings))?;
        Ok(())
    }

    /// The processes in it.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let list = process::must(ip().args(["netns", "pids", &self.name]))?;
        list.split_whitespace()
            .map(|pid| pid.parse().with_context(|| format!("a process id: {pid}")))
            .collect()
    }

    /// Kills the processes in it, waits for their end, and deletes it.
    pub fn delete(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let living = self.processes()?;
            if living.is_empty() {
                break;
            }
            for pid in &living {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if Instant::now() > deadline {
                bail!("processes {living:?} in namespace {} do not die", self.name);
            }
            thread::sleep(Duration::from_millis(10));
        }
        process::must(ip().args(["netns", "delete", &self.name]))?;
        Ok(())
    }
}

/// Runs many `ip` commands, one a line, in `netns` or outside of all, by one process.
pub fn batch(netns: Option<&Netns>, lines: &str, limit: Duration) -> Result<()> {
    let mut command = ip();
    if let Some(netns) = netns {
        command.args(["-n", &netns.name]);
    }
    process::run_with_input(command.args(["-batch", "-"]), lines, limit)?.ok().map(drop)
}

/// The `ip` command, found also where only root's `PATH` would look.
fn ip() -> Command {
    Command::new(if Path::new("/usr/sbin/ip").exists() { "/usr/sbin/ip" } else { "ip" })
}
