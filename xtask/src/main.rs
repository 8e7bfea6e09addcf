//! `cargo xtask`: set-up, build, lint, test, demo and bench of ambit, each one command on a fresh machine.
//!
//! One file per verb. What the verbs run inside network namespaces stands in the crate `ambit-integration`.

#![allow(clippy::print_stdout, reason = "a command line tool answers on its standard output")]

mod bench;
mod build;
mod clean;
mod cluster;
mod demo;
mod ebpf;
mod fuzz;
mod golang;
mod image;
mod kernel;
mod kube;
mod kube_demo;
mod lint;
mod peers;
mod rooms;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

use ambit_integration::tools::{self, Tool};
use clap::{Parser, Subcommand};

/// Build, test and show ambit. Every verb does its own set-up.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Setup(setup::Args),
    Ebpf(ebpf::Args),
    Build(build::Args),
    Image(image::Args),
    Lint(lint::Args),
    Test(test::Args),
    Demo(demo::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Cluster(cluster::Args),
    Clean(clean::Args),
    /// A client or server of the end-to-end tests, run inside a pod's namespace.
    #[command(hide = true, subcommand)]
    Tool(Tool),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Ebpf(args) => ebpf::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Build(args) => build::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Image(args) => image::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Lint(args) => lint::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Test(args) => test::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Cluster(args) => cluster::run(&args),
        Verb::Clean(args) => clean::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Tool(tool) => tools::run(&tool).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
