//! `ambit check-node`: what this node lacks, before an agent finds out. Changes nothing.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{output, table::Table};
use crate::{
    capture::{Finding, Verdict, check_host},
    config::{DEFAULT_BPF_ROOT, Location},
    files,
};

/// 2026-01-01: no certificate of any issuer of ours is older, and a clock before it was never set.
const BUILT: u64 = 1_767_225_600;
/// The longest network configuration looked at, in bytes.
const MAX_CONFLIST: u64 = 1024 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "\
Everything an agent will ask of the kernel is tried once and undone. Exits with 1 if something is lacking.

Examples:
  ambit check-node
  ambit check-node --cni-conf-dir /etc/cni/net.d --cni-bin-dir /opt/cni/bin
  ambit check-node -o json | jq '.[] | select(.state == \"lacking\")'")]
pub(super) struct CheckNodeArgs {
    /// The BPF file system
    #[arg(long, env = "AMBIT_BPF_ROOT", hide_env_values = true, value_name = "PATH", default_value = DEFAULT_BPF_ROOT)]
    bpf_root: Location,
    /// Where cgroup v2 is mounted [default: found in /proc/mounts]
    #[arg(long, env = "AMBIT_CGROUP_ROOT", hide_env_values = true, value_name = "PATH")]
    cgroup_root: Option<Location>,
    /// The folder of network configurations that the CNI plugin is to be chained into
    #[arg(long, env = "AMBIT_CNI_CONF_DIR", hide_env_values = true, value_name = "DIR")]
    cni_conf_dir: Option<Location>,
    /// The folder of CNI plugins
    #[arg(long, env = "AMBIT_CNI_BIN_DIR", hide_env_values = true, value_name = "DIR")]
    cni_bin_dir: Option<Location>,
    /// How to show it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Debug, Serialize)]
struct Line {
    what: &'static str,
    state: &'static str,
    detail: String,
}

pub(super) fn run(args: &CheckNodeArgs) -> anyhow::Result<ExitCode> {
    let mut findings = check_host(&args.bpf_root.0, args.cgroup_root.as_ref().map(|root| root.0.as_path()));
    findings.push(Finding { what: "clock", verdict: clock(SystemTime::now()) });
    if let Some(dir) = &args.cni_conf_dir {
        findings.push(Finding { what: "network configuration", verdict: network(&dir.0) });
    }
    if let Some(dir) = &args.cni_bin_dir {
        findings.push(Finding { what: "plugin folder", verdict: plugins(&dir.0) });
    }
    let lines: Vec<Line> = findings.into_iter().map(Line::from).collect();
    let good = lines.iter().all(|line| line.state != "lacking");
    output::emit(&render(&lines, args.output)?)?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(lines: &[Line], format: Format) -> anyhow::Result<String> {
    if format == Format::Json {
        return Ok(serde_json::to_string_pretty(lines)? + "\n");
    }
    let mut table = Table::new(["CHECK", "STATE", "DETAIL"]);
    for line in lines {
        table.row([line.what.to_owned(), line.state.to_owned(), line.detail.clone()]);
    }
    let mut out = String::new();
    table.draw(&mut out);
    let lacking = lines.iter().filter(|line| line.state == "lacking").count();
    out.push_str(&match lacking {
        0 => "\nambit can run on this node\n".to_owned(),
        1 => "\nambit cannot run on this node: one thing is lacking\n".to_owned(),
        more => format!("\nambit cannot run on this node: {more} things are lacking\n"),
    });
    Ok(out)
}

fn clock(now: SystemTime) -> Verdict {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if seconds < BUILT {
        return Verdict::Bad("it is before 2026: set it, or no certificate will be valid".to_owned());
    }
    Verdict::Good("set".to_owned())
}

/// The first configuration by name is the one that runtimes use.
fn network(dir: &Path) -> Verdict {
    let mut files: Vec<_> = match fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) => {
            return Verdict::Bad(format!("{}: {error}; name the folder with --cni-conf-dir", dir.display()));
        }
    };
    files.retain(|path| {
        path.extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|e| matches!(e, "conf" | "conflist" | "json"))
    });
    files.sort();
    let Some(first) = files.first() else {
        return Verdict::Note(format!(
            "none in {} yet; the plugin is chained as soon as a network is installed",
            dir.display()
        ));
    };
    match chainable(first) {
        Ok(name) => Verdict::Good(format!("{}: network {name}", first.display())),
        Err(why) => Verdict::Bad(format!("{} cannot be chained to: {why}", first.display())),
    }
}

/// The name of the network that a configuration describes.
fn chainable(path: &Path) -> Result<String, String> {
    let text = files::read_text(path, MAX_CONFLIST).map_err(|error| error.into_problem().to_string())?;
    let config: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let name = config["name"].as_str().ok_or("it has no name")?;
    let plugins = config["plugins"].as_array().is_some_and(|plugins| !plugins.is_empty());
    if !plugins && !config["type"].is_string() {
        return Err("it names no plugin".to_owned());
    }
    Ok(name.to_owned())
}

fn plugins(dir: &Path) -> Verdict {
    match tempfile(dir) {
        Ok(()) => Verdict::Good(format!("{} can be written to", dir.display())),
        Err(error) => Verdict::Bad(format!("{}: {error}; name the folder with --cni-bin-dir", dir.display())),
    }
}

/// Makes a file and removes it.
fn tempfile(dir: &Path) -> std::io::Result<()> {
    let path = dir.join(format!(".ambit-check-{}", std::process::id()));
    fs::File::create_new(&path)?;
    fs::remove_file(&path)
}

impl From<Finding> for Line {
    fn from(Finding { what, verdict }: Finding) -> Self {
        let (state, detail) = match verdict {
            Verdict::Good(detail) => ("ok", detail),
            Verdict::Note(detail) => ("note", detail),
            Verdict::Bad(detail) => ("lacking", detail),
        };
        Self { what, state, detail }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_configuration_by_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(network(dir.path()), Verdict::Note(_)));
        assert!(
            matches!(network(&dir.path().join("absent")), Verdict::Bad(why) if why.contains("--cni-conf-dir"))
        );
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("20-other.conflist", r#"{"name": "other", "plugins": [{"type": "bridge"}]}"#);
        put("05-readme.txt", "not looked at");
        assert_eq!(
            network(dir.path()),
            Verdict::Good(format!("{}/20-other.conflist: network other", dir.path().display()))
        );
        for (text, why) in [
            (r#"{"name": "n", "plugins": []}"#, "names no plugin"),
            (r#"{"plugins": [{"type": "bridge"}]}"#, "has no name"),
            ("{", "EOF"),
        ] {
            put("10-first.conf", text);
            assert!(matches!(network(dir.path()), Verdict::Bad(found) if found.contains(why)), "{text}");
        }
        put("10-first.conf", r#"{"name": "single", "type": "bridge"}"#);
        assert!(matches!(network(dir.path()), Verdict::Good(found) if found.ends_with("network single")));
    }

    #[test]
    fn a_clock_that_was_never_set_is_lacking() {
        assert!(matches!(clock(UNIX_EPOCH + Duration::from_secs(5)), Verdict::Bad(_)));
        assert_eq!(clock(SystemTime::now()), Verdict::Good("set".to_owned()));
    }

    #[test]
    fn what_is_lacking_is_counted() {
        let line = |what, verdict| Line::from(Finding { what, verdict });
        let lines = [
            line("kernel", Verdict::Good("Linux 6.1".to_owned())),
            line("cgroup v2", Verdict::Bad("none".to_owned())),
        ];
        assert_eq!(
            render(&lines, Format::Table).unwrap(),
            "  CHECK      STATE    DETAIL\n  kernel     ok       Linux 6.1\n  cgroup v2  lacking  none\n\n\
             ambit cannot run on this node: one thing is lacking\n"
        );
        assert!(render(&lines[..1], Format::Table).unwrap().ends_with("\nambit can run on this node\n"));
        assert!(render(&lines, Format::Json).unwrap().contains(r#""state": "lacking""#));
    }
}
