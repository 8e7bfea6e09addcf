//! `ambit check`: all that is for a pod.

use ambit_proto::policy::v1::{
    AppliedPolicy, CheckRequest, CheckResponse, CheckedPods, CheckedPort, Finding,
};
use clap::{Args, ValueEnum};

use super::{
    explain::{origin, protocol},
    output,
    policies::Source,
    table::{Table, line},
};
use crate::diagnosis;

#[derive(Debug, Args)]
#[command(after_help = "\
POD is a pod (NAME or NAMESPACE/NAME), what makes pods (deploy/NAME), a service (svc/NAME), a service account (sa/NAME), an address, or
a SPIFFE ID. Pods for which the same holds are shown together.

Examples:
  ambit check shop/cart-0
  ambit check deploy/cart -n shop
  ambit check shop/svc/cart -o json | jq '.groups[].mtls'
  ambit check shop/cart --manifests ./manifests -R
  ambit check shop/cart-0 --kubeconfig ~/.kube/config
  kubectl ambit check deploy/cart -n shop")]
pub(super) struct CheckArgs {
    /// Whom to look at
    #[arg(value_name = "POD")]
    whom: String,
    /// How to show it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Yaml,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let namespace = args.source.namespace().to_owned();
    let request = CheckRequest { pod: args.whom.clone(), namespace };
    let answer = args.source.ask(
        async |mut agent| agent.check(request.clone()).await,
        |world| diagnosis::check(world, &request),
    )?;
    output::emit(&match args.output {
        Format::Text => render(&answer),
        Format::Json => serde_json::to_string_pretty(&answer)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(&answer)?,
    })
}

fn render(answer: &CheckResponse) -> String {
    let mut out = String::new();
    for (at, group) in answer.groups.iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        draw(&mut out, group);
    }
    out
}

fn draw(out: &mut String, group: &CheckedPods) {
    line(out, &format!("PODS  {}", group.pods.join(", ")));
    line(out, &format!("  identity  {}", group.identity));
    let mesh = if group.in_mesh { "in it" } else { "not in it: nothing below is enforced" };
    line(out, &format!("  mesh      {mesh}"));
    out.push_str("\n  MUTUAL TLS\n");
    if let Some(mtls) = &group.mtls {
        let word = if group.ports.is_empty() { "all ports" } else { "other ports" };
        for port in &group.ports {
            let of_port = port.mtls.as_ref().map(origin).unwrap_or_default();
            line(out, &format!("  port {}: {of_port}", port.port));
        }
        line(out, &format!("  {word}: {}", origin(mtls)));
    }
    if !group.probe_ports.is_empty() {
        let ports: Vec<String> = group.probe_ports.iter().map(ToString::to_string).collect();
        line(out, &format!("  the kubelet's probes go past all of this on port {}", ports.join(", ")));
    }
    if !group.protocols.is_empty() {
        out.push_str("\n  PROTOCOLS\n");
        for port in &group.protocols {
            let told = port.protocol.as_ref().map(protocol).unwrap_or_default();
            line(out, &format!("  port {}: {told}; {}", port.port, read(port)));
        }
    }
    out.push_str("\n  POLICIES\n");
    let mut table = Table::new(["POLICY", "ACTION", "STATE", "FOR", "RULES"]);
    for AppliedPolicy { policy, action, state, scope, rules } in &group.policies {
        let rules = if rules.is_empty() { "none".to_owned() } else { rules.join(" | ") };
        table.row([policy.clone(), action.clone(), state.replace('_', " "), scope.clone(), rules]);
    }
    table.draw(out);
    for request in &group.request_authentications {
        line(out, &format!("  RequestAuthentication {request} says which tokens are good"));
    }
    if !group.issuers.is_empty() {
        line(out, &format!("  tokens count of {}", group.issuers.join(", ")));
    }
    if group.policies.iter().all(|policy| policy.action != "ALLOW" || policy.state == "dry_run") {
        line(out, "  no ALLOW policy is in force: whatever is not refused is let in");
    }
    if !group.findings.is_empty() {
        out.push_str("\n  LIKELY MISTAKES\n");
        for Finding { code, level, object, field, message, .. } in &group.findings {
            let field = if field.is_empty() { String::new() } else { format!(", {field}") };
            line(out, &format!("  {level} {code}: {object}{field}: {message}"));
        }
    }
}

/// Whether requests are read on a port, as the end of a sentence.
fn read(port: &CheckedPort) -> String {
    let is_known = port.protocol.as_ref().is_some_and(|protocol| protocol.reading == "http");
    match &*port.read_for {
        "" => "bytes pass unread".to_owned(),
        reader if is_known => format!("requests are read for {reader}"),
        reader => format!("requests, if it carries any, are read for {reader}"),
    }
}

#[cfg(test)]
mod tests {
    use ambit_proto::policy::v1::{Mtls, PortMtls, PortProtocol};

    use super::*;

    #[test]
    fn a_pod_is_shown_with_all_that_is_for_it() {
        let mtls = |mode: &str, scope: &str| {
            Some(Mtls {
                mode: mode.to_owned(),
                scope: scope.to_owned(),
                policy: "shop/p".to_owned(),
                ..Mtls::default()
            })
        };
        let group = CheckedPods {
            pods: vec!["shop/a".to_owned(), "shop/b".to_owned()],
            identity: "spiffe://td/ns/shop/sa/x".to_owned(),
            in_mesh: true,
            mtls: mtls("STRICT", "namespace"),
            ports: vec![PortMtls { port: 81, mtls: mtls("PERMISSIVE", "port") }],
            probe_ports: vec![9000],
            protocols: vec![CheckedPort {
                port: 80,
                protocol: Some(PortProtocol {
                    name: "http".to_owned(),
                    origin: "appProtocol of port 80 of Service shop/x".to_owned(),
                    reading: "http".to_owned(),
                }),
                read_for: "AuthorizationPolicy shop/q".to_owned(),
            }],
            findings: vec![Finding {
                code: "unknown-provider".to_owned(),
                level: "error".to_owned(),
                object: "AuthorizationPolicy shop/q".to_owned(),
                message: "there is none".to_owned(),
                ..Finding::default()
            }],
            policies: vec![AppliedPolicy {
                policy: "shop/q".to_owned(),
                action: "DENY".to_owned(),
                state: "in_force".to_owned(),
                scope: "selector".to_owned(),
                rules: vec!["everything".to_owned()],
            }],
            ..CheckedPods::default()
        };
        let expected = "\
PODS  shop/a, shop/b
  identity  spiffe://td/ns/shop/sa/x
  mesh      in it

  MUTUAL TLS
  port 81: PERMISSIVE by PeerAuthentication shop/p (port)
  other ports: STRICT by PeerAuthentication shop/p (namespace)
  the kubelet's probes go past all of this on port 9000

  PROTOCOLS
  port 80: HTTP: http, by appProtocol of port 80 of Service shop/x; requests are read for AuthorizationPolicy shop/q

  POLICIES
  POLICY  ACTION  STATE     FOR       RULES
  shop/q  DENY    in force  selector  everything
  no ALLOW policy is in force: whatever is not refused is let in

  LIKELY MISTAKES
  error unknown-provider: AuthorizationPolicy shop/q: there is none
";
        assert_eq!(render(&CheckResponse { groups: vec![group] }), expected);
    }
}
