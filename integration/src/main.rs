//! The harness as a program: `cargo xtask` builds what a verb needs, and then becomes this.

use std::process::ExitCode;

use ambit_integration::verbs::Verb;
use clap::Parser;

/// Tests, demo and measurements of ambit. `cargo xtask` calls it.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

fn main() -> ExitCode {
    Cli::parse().verb.run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
