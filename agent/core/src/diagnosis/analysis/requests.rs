//! Rules about HTTP requests: values that no request has, denials that reach beyond HTTP, tokens that nobody demands or nobody
//! judges, and providers that are not there.

use std::{collections::BTreeSet, sync::Arc};

use super::{Level, Report, Subject, numbers};
use crate::{
    diagnosis::connection::parties::known_ports,
    discovery::PortProtocol,
    model::Workload,
    policy::{Action, Attribute, AuthorizationPolicy, Field, RequestAuthentication, Rule},
};

pub(super) fn look(report: &mut Report<'_>) {
    for policy in report.readable() {
        let pods = report.pods(&policy.name, &policy.target);
        let subject = Subject::authorization(policy);
        unknown_provider(report, policy, &subject);
        for (at, rule) in policy.rules.iter().enumerate() {
            for field in rule.fields() {
                let path = format!("spec.rules[{at}].{}", field.name());
                odd_values(report, policy.action, field, &subject, &path);
                if needs_token(field) && !field.is_negated() {
                    no_issuer(report, &pods, &subject, &path);
                }
            }
            if policy.action == Action::Deny {
                beyond_http(report, rule, &pods, &subject, &format!("spec.rules[{at}]"));
            }
        }
    }
    for request in report.readable_requests() {
        not_demanded(report, request);
    }
}

fn unknown_provider(report: &mut Report<'_>, policy: &AuthorizationPolicy, subject: &Subject) {
    let Some(provider) = policy.provider.as_ref().filter(|_| policy.action == Action::Custom) else { return };
    if !report.cluster.policies.knows_provider(provider) {
        let message = format!(
            "{provider:?} is none of the agents' extensionProviders: whatever the rules match is refused"
        );
        report.add("unknown-provider", Level::Error, subject, "spec.provider.name", message);
    }
}

/// Values that are no request's, or not those of all requests that are meant.
fn odd_values(report: &mut Report<'_>, action: Action, field: &Field, subject: &Subject, path: &str) {
    let values = field.values();
    for value in &values {
        let never = match field.attribute() {
            Attribute::Path => odd_path(value),
            Attribute::Method if value.bytes().any(|byte| byte.is_ascii_lowercase()) => {
                Some("is no method that clients send: methods are case-sensitive, and in capitals")
            }
            _ => None,
        };
        if let Some(why) = never {
            report.add("never-matches", Level::Error, subject, path, format!("{value:?} {why}"));
        }
        let bare = !value.contains([':', '*']);
        if field.attribute() == Attribute::Host && bare && !values.contains(&format!("{value}:*")) {
            let level = if action == Action::Deny { Level::Warning } else { Level::Info };
            let message = format!(
                "{value:?} is that of calls to port 80 alone: clients of another port send it with the host; add \"{value}:*\""
            );
            report.add("host-without-port", level, subject, path, message);
        }
    }
}

/// Why no path is like this one.
fn odd_path(path: &str) -> Option<&'static str> {
    let inner = path.strip_prefix('*').or_else(|| path.strip_suffix('*')).unwrap_or(path);
    if path.contains('{') {
        None
    } else if inner.contains('*') {
        Some(
            "matches no path: * stands for something at the start or at the end only; {*} is one segment, {**} any",
        )
    } else if !path.starts_with(['/', '*']) {
        Some("matches no path: paths begin with a slash")
    } else if path.contains(['?', '#']) {
        Some("matches no path: query and fragment are not part of it")
    } else {
        None
    }
}

fn needs_token(field: &Field) -> bool {
    matches!(
        field.attribute(),
        Attribute::RequestPrincipal | Attribute::Audience | Attribute::Presenter | Attribute::Claim(_)
    )
}

/// No token counts for the pods, so that none has what the field asks for.
fn no_issuer(report: &mut Report<'_>, pods: &[&Arc<Workload>], subject: &Subject, path: &str) {
    let has_issuer = |pod: &&Arc<Workload>| !issuers_of(report, pod);
    let without: Vec<String> =
        pods.iter().copied().filter(has_issuer).map(|pod| pod.name.to_string()).collect();
    if let Some(first) = without.first() {
        let others =
            if without.len() > 1 { format!(" and {} more", without.len() - 1) } else { String::new() };
        let message = format!(
            "asks for a token, and no RequestAuthentication is for {first}{others}: no token counts there"
        );
        report.add("no-issuer", Level::Warning, subject, path, message);
    }
}

fn issuers_of(report: &Report<'_>, pod: &Workload) -> bool {
    let mut requests = report.cluster.policies.request_authentications_for(&pod.name.namespace, &pod.labels);
    requests.next().is_some()
}

/// Of a connection that is no HTTP, what a denial says of requests counts as matched.
fn beyond_http(report: &mut Report<'_>, rule: &Rule, pods: &[&Arc<Workload>], subject: &Subject, path: &str) {
    let mut fields = rule.fields().peekable();
    if fields.peek().is_none() || !fields.all(Field::needs_layer7) {
        return;
    }
    let mut other = BTreeSet::new();
    for pod in pods {
        for port in known_ports(report.cluster, pod) {
            if !matches!(report.cluster.mesh.port_protocol(pod, port), PortProtocol::Http(_)) {
                other.insert(port);
            }
        }
    }
    if !other.is_empty() {
        let message = format!(
            "refuses every connection that is no HTTP, as what it asks of requests is not to be known there: port {}; name the \
             ports that it is for, or say by the service's appProtocol that they are HTTP",
            numbers(&other)
        );
        report.add("deny-beyond-http", Level::Warning, subject, path, message);
    }
}

/// A RequestAuthentication refuses bad tokens, and lets in whoever has none.
fn not_demanded(report: &mut Report<'_>, request: &RequestAuthentication) {
    let pods = report.pods(&request.name, &request.target);
    let demands = |pod: &&Arc<Workload>| {
        let policies = report.cluster.policies.authorizations_for(&pod.name.namespace, &pod.labels);
        policies.filter(|policy| !policy.dry_run).any(|policy| {
            let fields = policy.rules.iter().flat_map(Rule::fields);
            let wanted = policy.action == Action::Deny;
            fields.filter(|field| needs_token(field)).any(|field| field.is_negated() == wanted)
        })
    };
    let mut open = pods.iter().copied().filter(|pod| !demands(pod)).map(|pod| pod.name.to_string());
    if let Some(first) = open.next() {
        let more = open.count();
        let others = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message = format!(
            "demands no token: requests without one are let in to {first}{others}, unless an AuthorizationPolicy asks for \
             requestPrincipals"
        );
        let subject = Subject::request(&request.name);
        report.add("token-not-demanded", Level::Info, &subject, "", message);
    }
}
