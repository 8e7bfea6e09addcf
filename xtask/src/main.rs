//! `cargo xtask`: set-up, build, lint, test, demo and bench of ambit, each one command on a fresh machine.
//!
//! One file per verb. What the verbs run inside network namespaces stands in the crate `ambit-integration`.

#![allow(clippy::print_stdout, reason = "a command line tool answers on its standard output")]

mod build;
mod ebpf;
mod setup;
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
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Ebpf(args) => ebpf::run(&args),
        Verb::Build(args) => build::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
