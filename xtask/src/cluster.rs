//! `cargo xtask cluster`: a real Kubernetes on this machine to work with.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::Subcommand;

use crate::{
    harness::{self, Call},
    kube,
};

/// A real two-node Kubernetes on this machine, to try things on. Needs root, and Go the first time.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask cluster up\n  cargo xtask cluster kubectl get pods -A\n  \
    cargo xtask cluster helm list -A\n  cargo xtask cluster node a ip address\n  \
    cargo xtask cluster import target/ambit-image.tar\n  cargo xtask cluster down")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring it up and leave it running.
    Up,
    /// kubectl as the administrator.
    Kubectl(Words),
    /// helm as the administrator.
    Helm(Words),
    /// A command as if called on a node, `a` or `b`.
    Node(Words),
    /// Bring an image, as a docker-archive, to both nodes.
    Import(Words),
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
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (verb, words) = match &args.verb {
        Verb::Up => {
            harness::must_be_root()?;
            let programs = kube::programs()?;
            return Call::new("cluster")?.words(["up"]).value("--programs", programs).become_it();
        }
        Verb::Kubectl(words) => ("kubectl", words.words.as_slice()),
        Verb::Helm(words) => ("helm", words.words.as_slice()),
        Verb::Node(words) => ("node", words.words.as_slice()),
        Verb::Import(words) => ("import", words.words.as_slice()),
        Verb::Down => ("down", [].as_slice()),
    };
    Call::new("cluster")?.words([verb]).words(words).become_it()
}
