//! `ambit analyze`: likely mistakes in policies, for people, programs and code scanning.

mod sarif;

use std::process::ExitCode;

use ambit_proto::policy::v1::{AnalyzeRequest, AnalyzeResponse, Finding};
use clap::{Args, ValueEnum};

use super::{
    output,
    policies::{Agents, Manifests, OF_AN_AGENT},
    table::line,
};
use crate::{config::Location, diagnosis};

#[derive(Debug, Args)]
#[command(after_help = "\
Without PATH the policies are looked at that are in force, as an agent knows them. With it, manifests are, and no agent is asked; a
Deployment or whatever else makes pods counts as a pod of its template. The exit code is 1 if anything is found at the level of
--fail-on or above.

Examples:
  ambit analyze
  ambit analyze ./manifests -R
  ambit analyze ./manifests -R --fail-on error -o sarif > ambit.sarif
  ambit analyze -o json | jq '.findings[] | select(.level == \"error\")'
  ambit analyze --kubeconfig ~/.kube/config
  kubectl ambit analyze")]
pub(super) struct AnalyzeArgs {
    /// Folders or files with manifests, instead of an agent
    #[arg(value_name = "PATH", conflicts_with_all = OF_AN_AGENT)]
    paths: Vec<Location>,
    /// How to show it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
    /// From which level on the exit code is 1
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "warning")]
    fail_on: FailOn,
    #[command(flatten)]
    manifests: Manifests,
    #[command(flatten)]
    agents: Agents,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Sarif,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Info,
    Warning,
    Error,
    Never,
}

pub(super) fn run(args: &AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let mut answer = if args.paths.is_empty() {
        args.agents.ask(async |mut agent| agent.analyze(AnalyzeRequest {}).await)?
    } else {
        let reading = args.manifests.read(&args.paths)?;
        diagnosis::analyze(&reading.world, &reading.places)?
    };
    let namespace = args.agents.namespace();
    if !namespace.is_empty() {
        answer.findings.retain(|finding| is_of(finding, namespace));
    }
    output::emit(&match args.output {
        Format::Text => render(&answer),
        Format::Json => serde_json::to_string_pretty(&answer)? + "\n",
        Format::Sarif => serde_json::to_string_pretty(&sarif::log(&answer))? + "\n",
    })?;
    let fails = answer.findings.iter().any(|finding| args.fail_on.is_met_by(finding));
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether a finding is about an object of this namespace, or about a file as a whole.
fn is_of(finding: &Finding, namespace: &str) -> bool {
    finding.object.split_once(' ').is_none_or(|(kind, name)| match name.split_once('/') {
        Some((of, _)) => of == namespace,
        None => kind == "Namespace" && name == namespace,
    })
}

impl FailOn {
    fn is_met_by(self, finding: &Finding) -> bool {
        let level = |name: &str| ["info", "warning", "error"].iter().position(|level| *level == name);
        match self {
            Self::Never => false,
            Self::Info => true,
            Self::Warning => level(&finding.level) >= level("warning"),
            Self::Error => level(&finding.level) >= level("error"),
        }
    }
}

fn render(answer: &AnalyzeResponse) -> String {
    let mut out = String::new();
    for Finding { code, level, object, field, message, place } in &answer.findings {
        let parts: Vec<&str> =
            [&**object, field, message].into_iter().filter(|part| !part.is_empty()).collect();
        line(&mut out, &format!("{level}: {} [{code}]", parts.join(": ")));
        if !place.is_empty() {
            line(&mut out, &format!("    in {place}"));
        }
    }
    let count = |name: &str| answer.findings.iter().filter(|finding| finding.level == name).count();
    let counts = [("error", count("error")), ("warning", count("warning")), ("note", count("info"))];
    let counts: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{count} {name}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    let found = if counts.is_empty() { "nothing found".to_owned() } else { counts.join(", ") };
    line(&mut out, &format!("{found} in {} policies, for {} pods", answer.policies, answer.pods));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(level: &str) -> Finding {
        Finding {
            code: "selects-nothing".to_owned(),
            level: level.to_owned(),
            object: "AuthorizationPolicy shop/p".to_owned(),
            field: "spec.selector".to_owned(),
            message: "matches no pod".to_owned(),
            place: "p.yaml".to_owned(),
        }
    }

    #[test]
    fn findings_are_lines_with_their_code_and_place() {
        let answer =
            AnalyzeResponse { findings: vec![finding("warning"), finding("warning")], policies: 3, pods: 7 };
        let one = "warning: AuthorizationPolicy shop/p: spec.selector: matches no pod [selects-nothing]\n    in p.yaml\n";
        assert_eq!(render(&answer), format!("{one}{one}2 warnings in 3 policies, for 7 pods\n"));
        assert_eq!(render(&AnalyzeResponse::default()), "nothing found in 0 policies, for 0 pods\n");
    }

    #[test]
    fn the_exit_code_follows_the_level() {
        let fails =
            |fail_on: FailOn| ["info", "warning", "error"].map(|level| fail_on.is_met_by(&finding(level)));
        assert_eq!(fails(FailOn::Info), [true; 3]);
        assert_eq!(fails(FailOn::Warning), [false, true, true]);
        assert_eq!(fails(FailOn::Error), [false, false, true]);
        assert_eq!(fails(FailOn::Never), [false; 3]);
    }
}
