//! An explanation for people.

use ambit_proto::policy::v1::{
    Case, ExplainResponse, JudgedRequest, Mtls, PolicyVerdict, PortProtocol, Remedy,
};

use super::super::table::{Table, line};

/// Pods that are named; of more it is said how many.
const MAX_NAMED: usize = 4;

pub(super) fn render(answer: &ExplainResponse) -> String {
    let mut out = String::new();
    for (at, case) in answer.cases.iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        draw(&mut out, case);
    }
    for note in &answer.notes {
        line(&mut out, &format!("note: {note}"));
    }
    out
}

fn draw(out: &mut String, case: &Case) {
    line(out, &format!("{} -> {}", named(&case.sources), destination(case)));
    let verdict = match &*case.verdict {
        "allow" => "LET IN",
        "deny" => "REFUSED",
        "per_request" => "DEPENDS ON THE REQUEST",
        _ => "NOT JUDGED",
    };
    let reason = if case.reason.is_empty() { String::new() } else { format!(" ({})", case.reason) };
    line(out, &format!("  {verdict}{reason}: {}", case.text));
    if case.mtls.is_some() {
        let carried = match case.mutual_tls {
            true => format!("mutual TLS, as {}", case.identity),
            false => "plaintext: the client is not in the mesh".to_owned(),
        };
        line(out, &format!("  carried in {carried}"));
    }
    if let Some(mtls) = &case.mtls {
        line(out, &format!("  mutual TLS on port {} is {}", case.port, origin(mtls)));
    }
    if let Some(spoken) = case.protocol.as_ref().filter(|_| case.mtls.is_some()) {
        line(out, &format!("  port {} is {}", case.port, protocol(spoken)));
    }
    if let Some(judged) = &case.request {
        request(out, judged);
    } else if case.per_request && case.verdict != "per_request" {
        line(
            out,
            "  of a connection that is no HTTP; HTTP requests are judged one by one: ask with --method and --path",
        );
    }
    if !case.policies.is_empty() {
        line(out, "  policies, in the order in which they are asked:");
        let mut table = Table::new(["  POLICY", "ACTION", "STATE", "MATCHES", "RULE", "BY"]);
        for verdict in &case.policies {
            table.row([
                format!("  {}", verdict.policy),
                verdict.action.clone(),
                verdict.state.replace('_', " "),
                if verdict.matches { "yes" } else { "no" }.to_owned(),
                verdict.rule.clone(),
                by(verdict),
            ]);
        }
        table.draw(out);
    }
    if !case.changes.is_empty() {
        line(out, "  what would change it:");
        case.changes.iter().for_each(|change| line(out, &format!("    {}", remedy(change, &case.verdict))));
    }
    case.notes.iter().for_each(|note| line(out, &format!("  note: {note}")));
}

/// The request, as it is judged.
fn request(out: &mut String, judged: &JudgedRequest) {
    let JudgedRequest { method, path, host, token, principal, external } = judged;
    line(out, &format!("  request {method} {path}, host {host} (the path as it is compared and forwarded)"));
    if !external.is_empty() {
        line(
            out,
            &format!(
                "  asked first: the provider {external}; below is what follows if it lets the request in"
            ),
        );
    }
    if token != "none" {
        let principal = if principal.is_empty() { String::new() } else { format!(", principal {principal}") };
        line(out, &format!("  token {token}{principal}"));
    }
}

/// What is spoken on a port, and what says so, as the end of a sentence.
pub(in crate::cli) fn protocol(protocol: &PortProtocol) -> String {
    let PortProtocol { name, origin, reading } = protocol;
    match &**reading {
        "http" => format!("HTTP: {name}, by {origin}"),
        "tcp" => format!("no HTTP: {name}, by {origin}; rules that need HTTP go by the rest of them"),
        _ => "told by its first bytes: no service says its protocol".to_owned(),
    }
}

fn destination(case: &Case) -> String {
    let pods = if case.destinations.is_empty() { "no pod".to_owned() } else { named(&case.destinations) };
    let port = if case.port == 0 { String::new() } else { format!(" port {}", case.port) };
    let service =
        if case.service.is_empty() { String::new() } else { format!(" (service {})", case.service) };
    format!("{pods}{port}{service}")
}

fn named(names: &[String]) -> String {
    let shown = names.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// A mode and what set it, as the end of a sentence.
pub(in crate::cli) fn origin(mtls: &Mtls) -> String {
    let Mtls { mode, scope, policy, unreadable, overridden } = mtls;
    let by = match &**scope {
        "default" => " by default: no PeerAuthentication states a mode".to_owned(),
        "unknown" => ", as not all policies are known".to_owned(),
        scope => format!(" by PeerAuthentication {policy} ({scope})"),
    };
    let doubt = if *unreadable && !policy.is_empty() { ", which cannot be read" } else { "" };
    let others: Vec<String> =
        overridden.iter().map(|other| format!("{} {} ({})", other.policy, other.mode, other.scope)).collect();
    let over = if others.is_empty() { String::new() } else { format!("; goes before {}", others.join(", ")) };
    format!("{mode}{by}{doubt}{over}")
}

/// What a policy matches by, or what it lacks.
fn by(verdict: &PolicyVerdict) -> String {
    match (verdict.matches, verdict.rule.is_empty(), verdict.wants.is_empty()) {
        (true, _, _) => verdict.rule_text.clone(),
        (false, true, _) => "it has no rule".to_owned(),
        (false, false, true) => verdict.rule_text.clone(),
        (false, false, false) => {
            let PolicyVerdict { field, wants, has, failing, .. } = verdict;
            let more = match failing.saturating_sub(1) {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            format!("{field} wants {wants}, and it is {has}{more}")
        }
    }
}

fn remedy(remedy: &Remedy, verdict: &str) -> String {
    let all_the_same = if remedy.then == verdict { " all the same" } else { "" };
    let then = match &*remedy.then {
        "allow" if verdict == "allow" => "still let in".to_owned(),
        "allow" => "let in".to_owned(),
        _ if remedy.policy.is_empty() => format!("refused{all_the_same}"),
        _ => format!("refused{all_the_same}, by {}", remedy.policy),
    };
    format!("{}: {then}", remedy.change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_with_what_would_change_it() {
        let case = Case {
            sources: vec!["shop/web".to_owned()],
            destinations: (0..6).map(|at| format!("shop/cart-{at}")).collect(),
            port: 8080,
            service: "shop/cart:80".to_owned(),
            mutual_tls: true,
            identity: "spiffe://td/ns/shop/sa/web".to_owned(),
            verdict: "deny".to_owned(),
            reason: "policy_denied".to_owned(),
            text: "refused".to_owned(),
            mtls: Some(Mtls {
                mode: "STRICT".to_owned(),
                scope: "mesh".to_owned(),
                policy: "root/m".to_owned(),
                ..Mtls::default()
            }),
            policies: vec![PolicyVerdict {
                policy: "shop/p".to_owned(),
                action: "ALLOW".to_owned(),
                state: "in_force".to_owned(),
                rule: "rules[0]".to_owned(),
                field: "from[0].source.namespaces".to_owned(),
                wants: "a".to_owned(),
                has: "shop".to_owned(),
                failing: 2,
                ..PolicyVerdict::default()
            }],
            changes: vec![Remedy {
                change: "if so".to_owned(),
                then: "deny".to_owned(),
                policy: "shop/q".to_owned(),
            }],
            ..Case::default()
        };
        let expected = "\
shop/web -> shop/cart-0, shop/cart-1, shop/cart-2, shop/cart-3 and 2 more port 8080 (service shop/cart:80)
  REFUSED (policy_denied): refused
  carried in mutual TLS, as spiffe://td/ns/shop/sa/web
  mutual TLS on port 8080 is STRICT by PeerAuthentication root/m (mesh)
  policies, in the order in which they are asked:
    POLICY  ACTION  STATE     MATCHES  RULE      BY
    shop/p  ALLOW   in force  no       rules[0]  from[0].source.namespaces wants a, and it is shop, and 1 more
  what would change it:
    if so: refused all the same, by shop/q
";
        assert_eq!(render(&ExplainResponse { cases: vec![case], notes: vec![] }), expected);
    }
}
