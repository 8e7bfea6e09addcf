//! `ambit`, the node-level ambient tunnel daemon.

mod admin;
mod app;
mod ca;
mod capture;
mod cli;
mod cluster;
mod cni;
mod discovery;
mod error;
mod files;
mod identity;
mod proxy;
mod reports;
mod telemetry;
mod tunnel;

fn main() -> std::process::ExitCode {
    cli::main()
}
