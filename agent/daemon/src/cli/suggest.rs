//! `ambit suggest`: AuthorizationPolicies that allow what agents have seen, and ServiceEntries that name where pods went; nothing else.

mod entries;
mod policy;

use clap::{Args, ValueEnum};

use super::observed::Asked;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ambit suggest --namespace shop > allow.yaml
  ambit suggest --namespace shop --dry-run | kubectl apply -f -     # then: ambit rehearsal --namespace shop
  ambit suggest --kubeconfig ~/.kube/config --namespace shop
  ambit suggest -o json | jq -r '.items[].metadata.name'
  ambit suggest --service-entries --namespace shop > outside.yaml   # before REGISTRY_ONLY, or after what it has refused

There is one policy for each workload that somebody has come to. Whoever comes less often than agents have watched is not in it:
have it rehearsed before it is enforced. See docs/policy.md, and for ServiceEntries docs/egress.md")]
pub(super) struct SuggestArgs {
    /// Mark the policies with istio.io/dry-run, so that they decide nothing and are rehearsed
    #[arg(long, conflicts_with = "service_entries")]
    dry_run: bool,
    /// ServiceEntries for what is outside instead: where pods went, if that is observed, and where they were refused by REGISTRY_ONLY
    #[arg(long)]
    service_entries: bool,
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "yaml")]
    output: Format,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Yaml,
    Json,
}

pub(super) fn run(args: &SuggestArgs) -> anyhow::Result<()> {
    let answers = args.asked.ask()?;
    if args.service_entries {
        let entries = entries::suggest(&answers.agents, |namespace| args.asked.is_about(namespace));
        return answers.emit(&match args.output {
            Format::Yaml => entries.yaml()?,
            Format::Json => entries.json()?,
        });
    }
    let suggested =
        policy::suggest(&answers.agents, |namespace| args.asked.is_about(namespace), args.dry_run);
    answers.emit(&match args.output {
        Format::Yaml => suggested.yaml(answers.since())?,
        Format::Json => suggested.json()?,
    })
}
