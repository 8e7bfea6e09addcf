//! A real Kubernetes on this machine to work with.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;

use crate::{
    cluster::{Access, Cluster, NODES, POD_IMAGE, Programs},
    console::Console,
    sandbox,
};

/// What is done with the cluster.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring it up and leave it running.
    Up {
        /// The folder of Kubernetes' programs and their like.
        #[arg(long)]
        programs: Programs,
    },
    /// kubectl as the administrator.
    Kubectl(Words),
    /// helm as the administrator.
    Helm(Words),
    /// A command as if called on a node, `a` or `b`.
    Node {
        /// The node.
        #[arg(value_parser = NODES)]
        node: String,
        #[command(flatten)]
        words: Words,
    },
    /// Bring an image, as a docker-archive, to both nodes.
    Import {
        /// The archive.
        image: PathBuf,
    },
    /// Take it down.
    Down,
}

#[derive(clap::Args)]
struct Words {
    /// The command's words.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    match &args.verb {
        Verb::Up { programs } => up(programs),
        Verb::Kubectl(words) => exec(running()?.1.kubectl().args(&words.words)),
        Verb::Helm(words) => exec(running()?.1.helm().args(&words.words)),
        Verb::Node { node, words } => {
            let shell = ["sh".into()];
            let words = if words.words.is_empty() { &shell } else { words.words.as_slice() };
            exec(running()?.1.on_node(node, &words[0])?.args(&words[1..]))
        }
        Verb::Import { image } => {
            let image = image.canonicalize().with_context(|| image.display().to_string())?;
            let (_, access) = running()?;
            NODES.iter().try_for_each(|node| access.import(node, &image))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Down => {
            sandbox::sweep_kept(&running()?.0)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn up(programs: &Programs) -> Result<ExitCode> {
    if running().is_ok() {
        bail!("a cluster is up already; `cargo xtask cluster down` takes it down");
    }
    sandbox::supervised(|sandbox| {
        let console = Console::new(false);
        console.line("Bringing up a control plane and two nodes");
        let cluster = Cluster::up(sandbox, programs, "kube")?;
        console.line(cluster.api.kubectl(&["get", "nodes", "-o", "wide"])?.trim_end());
        console.line(format_args!(
            "\nPods can run the image {}. Logs are in {}.\nUse `cargo xtask cluster kubectl …`, and `cargo xtask \
             cluster down` in the end.",
            POD_IMAGE,
            cluster.folder().display()
        ));
        sandbox.keep()?;
        // Dropping the cluster would end it.
        std::mem::forget(cluster);
        Ok(())
    })
}

/// The folder of the run that has a cluster, and the way into it.
fn running() -> Result<(PathBuf, Access)> {
    let found = sandbox::kept()?.into_iter().find_map(|run| Access::find(&run).map(|access| (run, access)));
    found.context("no cluster is up; `cargo xtask cluster up` brings one up")
}

/// Becomes `command`.
fn exec(command: &mut Command) -> Result<ExitCode> {
    Err(command.exec()).context("cannot start it")
}
