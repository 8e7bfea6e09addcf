//! A profile of the agents under one load.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{
    bench::{self, Choice, Load},
    console::Console,
    profile::{self, Settings},
    sandbox,
};

/// What is profiled, and how.
#[derive(clap::Args)]
pub struct Args {
    /// The load, as `bench --list` names it.
    load: String,
    /// What lies between client and server.
    #[arg(long, default_value = "ambit", value_parser = ["ambit", "ambit-http"])]
    path: String,
    /// For so many seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// The folder of flame graph and list.
    #[arg(long, default_value = "target/profile")]
    out: PathBuf,
    /// The daemon, with symbols and frame pointers.
    #[arg(long)]
    binary: PathBuf,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let settings = Settings {
        binary: args.binary.clone(),
        load: load(&args.load)?,
        path: Choice::named(&args.path)?,
        seconds: args.seconds,
        out: args.out.clone(),
    };
    profile::must_have_perf()?;
    sandbox::supervised(|sandbox| profile::run(sandbox, &settings, Console::new(false)))
}

/// The one load of this name that can go on for as long as it is profiled.
fn load(name: &str) -> Result<Load> {
    let found = bench::chosen(&[name.to_owned()])?;
    let load = found.into_iter().next().context("no load")?;
    if load.name != name || !load.goes_on() {
        let names: Vec<&str> =
            bench::LOADS.iter().filter(|load| load.goes_on()).map(|load| load.name).collect();
        bail!("{name} cannot be profiled; these can: {}", names.join(", "));
    }
    Ok(load)
}

#[cfg(test)]
mod tests {
    use super::load;

    #[test]
    fn one_load_that_goes_on_is_profiled() {
        assert_eq!(load("http-32").unwrap().name, "http-32");
        for wrong in ["memory", "http", "nothing"] {
            assert!(load(wrong).unwrap_err().to_string().contains("http-32"), "{wrong}");
        }
    }
}
