//! `ambit uninstall`: takes off what agents left on the node.

use std::fmt::Write;

use anyhow::bail;
use clap::Args;

use super::output;
use crate::{
    app,
    config::{CniDirs, DEFAULT_BPF_ROOT, DEFAULT_RUN_DIR, DnsName, Location, USUAL_STATE_DIR},
    instance::{InstanceError, RunDir},
};

#[derive(Debug, Args)]
#[command(after_help = "\
While no agent runs, the pods of its node stay closed: what an agent put into the kernel outlives it, and so does the CNI plugin,
which keeps new pods of the mesh waiting. This command takes all of it off, and pods talk in plaintext again. The plugin is looked
for where the agent wrote down that it is, and in the CNI folders of the common distributions.

On a node without the program, its CNI plugin is the same one: /opt/cni/bin/ambit-cni uninstall --all

Examples:
  ambit uninstall --all
  ambit uninstall --node worker-1
  ambit uninstall --all --bpf-root /sys/fs/bpf --run-dir /run/ambit --force
  ambit uninstall --all --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d")]
pub(super) struct UninstallArgs {
    #[command(flatten)]
    which: Which,
    /// The BPF file system
    #[arg(long, env = "AMBIT_BPF_ROOT", hide_env_values = true, value_name = "PATH", default_value = DEFAULT_BPF_ROOT)]
    bpf_root: Location,
    /// The folder of the agent's status socket and lock
    #[arg(long, env = "AMBIT_RUN_DIR", hide_env_values = true, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: Location,
    /// The folder of what agents keep of other clusters
    #[arg(long, env = "AMBIT_STATE_DIR", hide_env_values = true, value_name = "DIR", default_value = USUAL_STATE_DIR)]
    state_dir: Location,
    /// Where the CNI plugin was installed, if it is not found; with --cni-conf-dir only
    #[arg(long, env = "AMBIT_CNI_BIN_DIR", hide_env_values = true, value_name = "DIR")]
    cni_bin_dir: Option<Location>,
    /// Where the CNI plugin was chained, if it is not found; with --cni-bin-dir only
    #[arg(long, env = "AMBIT_CNI_CONF_DIR", hide_env_values = true, value_name = "DIR")]
    cni_conf_dir: Option<Location>,
    /// Do it even while an agent runs there: its pods lose their capture at once
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Take off what the agent of this node left
    #[arg(long, value_name = "NAME")]
    node: Option<DnsName>,
    /// Take off what any agent left
    #[arg(long)]
    all: bool,
}

pub(super) fn run(args: &UninstallArgs) -> anyhow::Result<()> {
    // Held to the end, so that no agent starts halfway through.
    let claim = claim(args)?;
    let cni = CniDirs::of(args.cni_bin_dir.clone(), args.cni_conf_dir.clone())?;
    let left = app::Left {
        node: args.which.node.as_ref().map(|name| name.0.as_str()),
        bpf_root: &args.bpf_root.0,
        run_dir: &args.run_dir.0,
        state_dir: &args.state_dir.0,
        in_use: claim.is_none(),
        cni: cni.as_ref().map(|dirs| (&*dirs.bin, &*dirs.conf)),
    };
    output::emit(&report(&app::uninstall(&left)?))
}

fn claim(args: &UninstallArgs) -> anyhow::Result<Option<RunDir>> {
    let run_dir = &args.run_dir.0;
    if !run_dir.is_dir() {
        return Ok(None);
    }
    match RunDir::claim(run_dir) {
        Ok(claim) => Ok(Some(claim)),
        Err(InstanceError::Claimed { .. }) if args.force => Ok(None),
        Err(InstanceError::Claimed { dir, pid }) => {
            let process = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
            bail!("an agent runs in --run-dir {}{process}: stop it first, or pass --force", dir.display())
        }
        Err(error) => Err(error.into()),
    }
}

fn report(removed: &[String]) -> String {
    if removed.is_empty() {
        return "nothing to remove\n".to_owned();
    }
    removed.iter().fold(String::new(), |mut text, item| {
        // Writing into a String does not fail.
        let _ = writeln!(text, "removed {item}");
        text
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: UninstallArgs,
    }

    #[test]
    fn a_running_agent_is_not_undermined_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().to_str().unwrap();
        let line = |extra: &[&'static str]| {
            let base = ["uninstall", "--all", "--run-dir", run_dir];
            Line::try_parse_from(base.iter().chain(extra)).unwrap().args
        };
        let agent = RunDir::claim(dir.path()).unwrap();
        let error = claim(&line(&[])).unwrap_err().to_string();
        assert!(error.contains("stop it first, or pass --force"), "{error}");
        assert!(claim(&line(&["--force"])).unwrap().is_none());
        drop(agent);
        let held = claim(&line(&[])).unwrap().unwrap();
        assert!(RunDir::claim(dir.path()).is_err(), "an agent could start meanwhile");
        drop(held);
    }

    #[test]
    fn what_was_removed_is_listed() {
        assert_eq!(report(&[]), "nothing to remove\n");
        assert_eq!(report(&["link a".to_owned(), "map b".to_owned()]), "removed link a\nremoved map b\n");
    }
}
