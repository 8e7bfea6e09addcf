//! The command line: what to do with which configuration.
//!
//! Every command ends in one exit code: 0, 1 for what went wrong, 2 for what was asked wrongly. Output goes through a
//! writer; a reader that goes away early is no error.

mod agent;
mod analyze;
mod ask;
mod ca;
mod certs;
mod check;
mod check_node;
mod cluster_secret;
mod denials;
mod explain;
mod moment;
mod observed;
mod output;
mod policies;
mod process;
mod readiness;
mod rehearsal;
mod remote;
mod status;
mod suggest;
mod supervise;
mod table;
mod uninstall;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{cni, config::ConfigError};

/// What was asked for is not possible as asked: the code that clap ends with as well.
const USAGE: u8 = 2;

/// A build that is not optimised says so: what it takes in time and memory is not what a release takes.
const VERSION: &str = match cfg!(debug_assertions) {
    true => concat!(env!("CARGO_PKG_VERSION"), " (not optimised)"),
    false => env!("CARGO_PKG_VERSION"),
};

/// Node-level ambient tunnel for Kubernetes: pods talk under mutual TLS and know nothing of it.
#[derive(Debug, Parser)]
#[command(
    name = "ambit",
    version = VERSION,
    arg_required_else_help = true,
    after_help = "\
Examples:
  ambit agent --node worker-1 --manifests ./manifests --ca-dir /var/lib/ambit/ca
  ambit status
  ambit explain shop/web stock/cart:8080
  ambit uninstall --all

Every command has its own examples: ambit <COMMAND> --help"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of one node
    Agent(Box<agent::AgentArgs>),
    /// Run the CA service that agents ask for certificates
    Ca(Box<ca::CaArgs>),
    /// Show what the agent of this node does
    Status(status::StatusArgs),
    /// Show the certificates and roots that the agent of this node holds
    Certs(certs::CertsArgs),
    /// Show which connections were refused, and why
    Denials(denials::DenialsArgs),
    /// Say which workloads can be made STRICT, and who still comes in plaintext
    Readiness(readiness::ReadinessArgs),
    /// Show what dry-run and AUDIT policies would have changed
    Rehearsal(rehearsal::RehearsalArgs),
    /// Write AuthorizationPolicies that allow what was seen
    Suggest(suggest::SuggestArgs),
    /// Say why connections from one party to another are let in or refused, and what would change it
    Explain(explain::ExplainArgs),
    /// Show all that is for a pod: mutual TLS on its ports, and every policy
    Check(check::CheckArgs),
    /// Look for mistakes in policies, of the mesh or of a folder
    Analyze(analyze::AnalyzeArgs),
    /// Print the Secret by which agents of one cluster read another
    ClusterSecret(cluster_secret::ClusterSecretArgs),
    /// Say what this node lacks for an agent
    CheckNode(check_node::CheckNodeArgs),
    /// Take everything off this node that agents left on it: in the kernel, the CNI plugin, the run directory
    Uninstall(uninstall::UninstallArgs),
    /// Serve a container runtime as its CNI plugin; the same as calling this program by the name ambit-cni
    #[command(hide = true)]
    Cni,
    /// Print the version
    Version,
}

/// Runs the program with the arguments and the environment of the process.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next();
    let called = name.as_deref().and_then(|name| Path::new(name).file_name());
    // Container runtimes give no arguments. With some, the plugin is this program for a node that has no other copy of it.
    if called.is_some_and(|name| name == cni::BINARY) && args.next().is_none() {
        return cni::run();
    }
    run(std::env::args_os())
}

fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(asked) => {
            // Help and version come this way too. Nobody may be left to read them.
            let _ = asked.print();
            return ExitCode::from(u8::try_from(asked.exit_code()).unwrap_or(USAGE));
        }
    };
    let done = match cli.command {
        Command::Agent(args) => agent::run(*args),
        Command::Ca(args) => ca::run(*args),
        Command::Status(args) => status::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Certs(args) => certs::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Denials(args) => denials::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Readiness(args) => readiness::run(&args),
        Command::Rehearsal(args) => rehearsal::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Suggest(args) => suggest::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Explain(args) => explain::run(&args),
        Command::Check(args) => check::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Analyze(args) => analyze::run(&args),
        Command::ClusterSecret(args) => cluster_secret::run(&args).map(|()| ExitCode::SUCCESS),
        Command::CheckNode(args) => check_node::run(&args),
        Command::Uninstall(args) => uninstall::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Cni => Ok(cni::run()),
        Command::Version => output::emit(&format!("ambit {VERSION}\n")).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        output::complain(&format!("error: {error:#}\n"));
        if error.is::<ConfigError>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_shows_examples() {
        let mut root = Cli::command();
        assert!(root.render_long_help().to_string().contains("Examples:"));
        for name in [
            "agent",
            "analyze",
            "ca",
            "certs",
            "check",
            "check-node",
            "cluster-secret",
            "denials",
            "explain",
            "readiness",
            "rehearsal",
            "status",
            "suggest",
            "uninstall",
        ] {
            let help = root.find_subcommand_mut(name).unwrap().render_long_help().to_string();
            assert!(help.contains(&format!("Examples:\n  ambit {name}")), "{name}: {help}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_word_about_it() {
        for (line, expected) in [
            ("ambit agnet", "unrecognized subcommand 'agnet'"),
            ("ambit agent --nodes a", "unexpected argument '--nodes'"),
            ("ambit agent --node a --node b", "cannot be used multiple times"),
            ("ambit agent --node Worker_1", "lower-case letters"),
            ("ambit agent --metrics-addr 15020", "IP:port"),
            ("ambit agent --metrics-addr localhost:15020", "IP:port"),
            ("ambit agent --metrics-addr 1.2.3.4:99999", "IP:port"),
            ("ambit agent --svid-ttl 24", "unit"),
            ("ambit agent --svid-ttl 5s", "at least 10s"),
            ("ambit agent --svid-ttl 91d", "at most 90d"),
            ("ambit agent --trust-domain Cluster.Local", "trust domain"),
            ("ambit agent --workers 0", "1 to 256"),
            ("ambit agent --log info,=", "log filter"),
            ("ambit agent --log-format xml", "text or json"),
            ("ambit agent --vault-addr vault:8200", "https://HOST"),
            ("ambit agent --trust-domain-aliases A", "trust domain"),
            ("ambit agent --path-normalization merge", "none, base, merge-slashes"),
            ("ambit agent --post-quantum yes", "off, offer, prefer or require"),
            ("ambit agent --local-traffic yes", "use join or encrypt"),
            ("ambit agent --kernel-tls yes", "use off, auto or force"),
            ("ambit agent --bundles yes", "use off, auto or force"),
            ("ambit agent --busy-poll 200", "use off, auto, or a time from 1us to 1ms"),
            ("ambit agent --busy-poll 2ms", "use off, auto, or a time from 1us to 1ms"),
            ("ambit agent --dataplane-label enabled", "KEY=ENABLED"),
            ("ambit agent --root-namespace a.b", "namespace"),
            ("ambit agent --issuer acme", "use builtin, ambit, istio"),
            ("ambit agent --ca-address istiod", "HOST:PORT"),
            ("ambit ca --dns-name a,B", "lower case"),
            ("ambit ca --rate 0", "1 to 100000"),
            ("ambit agent --run-dir= --node a", "empty"),
            ("ambit status -o xml", "possible values: table, json, yaml"),
            (
                "ambit status nodes",
                "possible values: pods, certs, issuers, clusters, connections, denials, problems",
            ),
            ("ambit denials --since yesterday", "--since"),
            ("ambit readiness --window 91d", "at most 90d"),
            ("ambit suggest -o table", "possible values: yaml, json"),
            ("ambit rehearsal --namespace Shop", "namespace"),
            ("ambit explain shop/web", "<DST[:PORT]>"),
            ("ambit explain a b --manifests . --node n", "cannot be used with"),
            ("ambit explain a b --expect maybe", "possible values: allow, deny"),
            ("ambit check", "required"),
            ("ambit analyze . -o xml", "possible values: text, json, sarif"),
            ("ambit analyze . --all-nodes", "cannot be used with"),
            ("ambit uninstall", "required"),
            ("ambit uninstall --all --node a", "cannot be used with"),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line).to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
