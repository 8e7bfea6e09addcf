//! Licences, double versions, origins and known holes of what the workspace is built of: `deny.toml`, by cargo-deny.
//!
//! What cannot be had without a network is said and left out: the tool itself, or the database of advisories.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{
    setup,
    workspace::{self, step},
};

/// The release that is installed.
const CARGO_DENY: &str = "0.20.2";
/// How long the database of advisories may take to come, in seconds.
const FETCH_LIMIT: &str = "60";

/// Checks every dependency of the workspace.
pub(crate) fn check() -> Result<()> {
    let tool = match tool() {
        Ok(tool) => tool,
        Err(error) => {
            eprintln!(
                "    cargo-deny {CARGO_DENY} cannot be had, so dependencies are not checked: {error:#}"
            );
            return Ok(());
        }
    };
    step("Checking dependencies: licences, versions, origins", || {
        workspace::run(deny(&tool).args(["--locked", "check", "licenses", "bans", "sources"]))
    })?;
    step("Checking dependencies for known holes", || {
        let mut fetch = Command::new("timeout");
        fetch.arg(FETCH_LIMIT).arg(&tool).args(["fetch", "db"]);
        fetch.current_dir(workspace::root()).env("GIT_TERMINAL_PROMPT", "0");
        if let Err(error) = workspace::output(&mut fetch) {
            eprintln!("    the database of advisories cannot be had, so no hole is looked for: {error:#}");
            return Ok(());
        }
        workspace::run(deny(&tool).args(["--locked", "check", "--disable-fetch", "advisories"]))
    })
}

/// Makes sure of cargo-deny in the target folder; returns its path.
pub(crate) fn tool() -> Result<PathBuf> {
    let tools = workspace::tools_dir()?;
    let tool = tools.join("bin/cargo-deny");
    if setup::version(&tool).as_deref() == Some(CARGO_DENY) {
        return Ok(tool);
    }
    step(&format!("Building cargo-deny {CARGO_DENY} (once, about two minutes)"), || {
        let build = tools.join("build-deny");
        let mut install = workspace::cargo();
        install.args(["install", "cargo-deny", "--version", CARGO_DENY, "--locked", "--force", "--root"]);
        // It works for seconds: what is built faster is done sooner.
        install
            .arg(&tools)
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_TARGET_DIR", &build);
        workspace::run(&mut install)?;
        setup::remove(&build)
    })?;
    Ok(tool)
}

fn deny(tool: &Path) -> Command {
    let mut command = Command::new(tool);
    command.current_dir(workspace::root());
    command
}
