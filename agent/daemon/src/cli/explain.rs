//! `ambit explain`: why connections are let in or refused, and what would change it.

mod text;

pub(super) use text::origin;

use std::{net::IpAddr, process::ExitCode};

use ambit_proto::policy::v1::ExplainRequest;
use clap::{Args, ValueEnum};

use super::{output, policies::Source};
use crate::diagnosis;

#[derive(Debug, Args)]
#[command(after_help = "\
SRC and DST are a pod (NAME or NAMESPACE/NAME), what makes pods (deploy/NAME or NAMESPACE/deploy/NAME), a service (svc/NAME or
NAME.NAMESPACE.svc), a service account (sa/NAME), an address, or a SPIFFE ID. Connections that are judged alike are told together.

With --manifests the question is answered from manifests, by the same code that decides on connections; a Deployment or whatever else
makes pods counts as a pod of its template. With --expect the exit code is 1 where a verdict is another one.

Examples:
  ambit explain shop/web stock/cart:8080
  ambit explain deploy/web svc/cart:80 -n shop
  ambit explain 192.0.2.7 shop/cart-0:8080
  ambit explain spiffe://cluster.local/ns/dev/sa/x shop/svc/cart:80 -o json
  ambit explain shop/web stock/cart:8080 --manifests ./manifests -R --expect allow
  ambit explain shop/web stock/cart:8080 --kubeconfig ~/.kube/config
  kubectl ambit explain deploy/web svc/cart:80 -n shop")]
pub(super) struct ExplainArgs {
    /// Who connects
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to; all ports that are known without one
    #[arg(value_name = "DST[:PORT]")]
    destination: String,
    /// The address that the client comes from, where it is not that of a pod
    #[arg(long, value_name = "IP")]
    source_ip: Option<IpAddr>,
    /// Fail unless every one of the connections is let in, or refused
    #[arg(long, value_enum, value_name = "VERDICT")]
    expect: Option<Verdict>,
    /// How to show it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    answers: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Verdict {
    Allow,
    Deny,
}

pub(super) fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let request = ExplainRequest {
        source: args.source.clone(),
        destination: args.destination.clone(),
        namespace: args.answers.namespace().to_owned(),
        source_ip: args.source_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        request: None,
    };
    let answer = args.answers.ask(
        async |mut agent| agent.explain(request.clone()).await,
        |world| diagnosis::explain(world, &request),
    )?;
    output::emit(&match args.output {
        Format::Text => text::render(&answer),
        Format::Json => serde_json::to_string_pretty(&answer)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(&answer)?,
    })?;
    let as_expected = match args.expect {
        None => true,
        // Where nobody judges, everybody is let in.
        Some(Verdict::Allow) => answer.cases.iter().all(|case| case.verdict != "deny"),
        Some(Verdict::Deny) => answer.cases.iter().all(|case| case.verdict == "deny"),
    };
    Ok(if as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
