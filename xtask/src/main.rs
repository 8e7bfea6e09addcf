//! `cargo xtask`: set-up, build, lint, test, demo and bench of ambit, each one command on a fresh machine.
//!
//! One file per verb, each thin: what they run inside network namespaces is the program `ambit-integration`, which they
//! build and become.

#![allow(clippy::print_stdout, reason = "a command line tool answers on its standard output")]

mod bench;
mod build;
mod ci;
mod clean;
mod cluster;
mod demo;
mod deny;
mod ebpf;
mod fuzz;
mod golang;
mod harness;
mod image;
mod kernels;
mod kube;
mod lint;
mod peers;
mod profile;
mod proxies;
mod rooms;
mod setup;
mod test;
mod times;
mod workspace;

use std::process::ExitCode;

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
    Profile(profile::Args),
    Fuzz(fuzz::Args),
    Ci(ci::Args),
    Cluster(cluster::Args),
    Clean(clean::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Ebpf(args) => ebpf::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Build(args) => build::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Image(args) => image::run(&args),
        Verb::Lint(args) => lint::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Test(args) => test::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Profile(args) => profile::run(&args),
        Verb::Ci(args) => ci::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Cluster(args) => cluster::run(&args),
        Verb::Clean(args) => clean::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
