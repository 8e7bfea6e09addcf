//! From what the core answers to the messages that show it.

use ambit_core::{
    diagnosis::{Answer, Case, Checked, Client, Finding, Outcome},
    discovery::PortProtocol,
    policy::{
        Action, AuthorizationPolicy, Decision, Explanation, Mode, MtlsMode, MtlsOrigin, PolicyVerdict,
        Remedy, Statement, Target,
    },
};
use ambit_proto::policy::v1 as proto;

use super::name;
use crate::discovery::World;

pub(super) fn explained(answer: Answer) -> proto::ExplainResponse {
    proto::ExplainResponse { cases: answer.cases.into_iter().map(case).collect(), notes: answer.notes }
}

fn case(case: Case) -> proto::Case {
    let protocol = protocol(&case.protocol);
    let depends = case.per_request && matches!(case.protocol, PortProtocol::Http(_));
    let told = proto::Case {
        sources: case.sources.iter().map(|client| client.name.clone()).collect(),
        destinations: case.destinations.iter().map(ToString::to_string).collect(),
        port: case.port.into(),
        service: case.service.map(|(service, port)| format!("{service}:{port}")).unwrap_or_default(),
        mutual_tls: case.mutual_tls,
        identity: case.sources.first().map(identity).unwrap_or_default(),
        notes: case.notes,
        protocol: Some(protocol),
        request: case.request.map(|request| proto::JudgedRequest {
            method: request.method,
            path: request.path,
            host: request.host,
            token: request.token,
            principal: request.principal.unwrap_or_default(),
            external: request.external.unwrap_or_default(),
        }),
        per_request: case.per_request,
        ..proto::Case::default()
    };
    let unjudged = |verdict: &str, text: &str| proto::Case {
        verdict: verdict.to_owned(),
        text: text.to_owned(),
        ..told.clone()
    };
    match case.outcome {
        // Where only tokens are judged, what has none is let in.
        Outcome::Judged(explanation) if depends && explanation.decision != Decision::Allow => {
            per_request(judged(told, *explanation))
        }
        Outcome::Judged(explanation) => judged(told, *explanation),
        Outcome::NotInMesh => unjudged(
            "not_in_mesh",
            "the pod is not in the mesh: connections to it are plaintext, and no policy is enforced",
        ),
        Outcome::ToItself => unjudged(
            "to_itself",
            "a pod that connects to its own address is not captured: no policy is asked",
        ),
        Outcome::Outside => unjudged(
            "outside",
            "the address is that of no pod and no service: connections pass through as they are, and no policy is asked",
        ),
    }
}

/// A connection that carries HTTP by what is known, of which it is not said what it asks for: no verdict is true of all of it.
fn per_request(told: proto::Case) -> proto::Case {
    let other = if told.verdict == "deny" { "refused" } else { "let in" };
    let text = format!(
        "each request is judged: ask with --method and --path. What is not HTTP would be {other}: {}",
        told.text
    );
    proto::Case {
        verdict: "per_request".to_owned(),
        text,
        reason: String::new(),
        policy: String::new(),
        rule: String::new(),
        changes: Vec::new(),
        ..told
    }
}

/// What is spoken on a port, and what says so.
fn protocol(protocol: &PortProtocol) -> proto::PortProtocol {
    let said = match protocol {
        PortProtocol::Http(origin) | PortProtocol::Other(origin) => Some(origin),
        PortProtocol::Unknown => None,
    };
    let origin = said.map(|origin| {
        let by = if origin.by_app_protocol { "appProtocol" } else { "the name or number" };
        format!("{by} of port {} of Service {}", origin.port, origin.service)
    });
    proto::PortProtocol {
        name: said.map(|origin| origin.application.clone()).unwrap_or_default(),
        origin: origin.unwrap_or_default(),
        reading: protocol.reading().to_owned(),
    }
}

fn identity(client: &Client) -> String {
    client.identity.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn judged(told: proto::Case, explanation: Explanation) -> proto::Case {
    let mtls = Some(mtls(&explanation.mtls));
    let policies = explanation.policies.iter().map(verdict).collect();
    let changes = explanation.remedies.iter().map(remedy).collect();
    let told = proto::Case { mtls, policies, changes, ..told };
    match explanation.decision {
        Decision::Deny(refusal) => proto::Case {
            verdict: "deny".to_owned(),
            reason: refusal.reason.label().to_owned(),
            policy: refusal.policy.as_deref().unwrap_or_default().to_owned(),
            rule: refusal.rule.as_deref().unwrap_or_default().to_owned(),
            text: refusal.text.to_string(),
            ..told
        },
        Decision::Allow => {
            let allowing = explanation.policies.iter().filter(|verdict| verdict.is_allowing());
            let by = allowing.into_iter().find_map(|verdict| Some((&verdict.policy.name, verdict.matched?)));
            let text = match by {
                Some((policy, at)) => format!("let in by AuthorizationPolicy {policy} rules[{at}]"),
                None => "let in: no ALLOW policy is for the pod, and no other policy refuses it".to_owned(),
            };
            proto::Case {
                verdict: "allow".to_owned(),
                policy: name(by.map(|(policy, _)| policy)),
                rule: by.map(|(_, at)| format!("rules[{at}]")).unwrap_or_default(),
                text,
                ..told
            }
        }
    }
}

fn mtls(origin: &MtlsOrigin) -> proto::Mtls {
    proto::Mtls {
        mode: match origin.rule.mode {
            MtlsMode::Strict => "STRICT",
            MtlsMode::Permissive => "PERMISSIVE",
        }
        .to_owned(),
        scope: origin.scope.to_string(),
        policy: name(origin.rule.by.as_ref()),
        unreadable: origin.rule.doubtful,
        overridden: origin.overridden.iter().map(statement).collect(),
    }
}

fn statement(statement: &Statement) -> proto::MtlsStatement {
    let mode = match statement.mode {
        Mode::Strict => "STRICT",
        Mode::Permissive => "PERMISSIVE",
        Mode::Disable => "DISABLE",
    };
    proto::MtlsStatement {
        scope: statement.scope.to_string(),
        mode: mode.to_owned(),
        policy: statement.by.to_string(),
    }
}

fn verdict(verdict: &PolicyVerdict) -> proto::PolicyVerdict {
    let PolicyVerdict { policy, matched, nearest, .. } = verdict;
    let rule = matched.or_else(|| nearest.as_ref().map(|miss| miss.rule));
    let miss = nearest.as_ref();
    proto::PolicyVerdict {
        policy: policy.name.to_string(),
        action: action(policy.action).to_owned(),
        state: state(policy).to_owned(),
        matches: matched.is_some(),
        rule: rule.map(|at| format!("rules[{at}]")).unwrap_or_default(),
        rule_text: rule.and_then(|at| policy.rules.get(at)).map(ToString::to_string).unwrap_or_default(),
        field: miss.map(|miss| miss.field.clone()).unwrap_or_default(),
        wants: miss.map(|miss| miss.wants.clone()).unwrap_or_default(),
        has: miss.map(|miss| miss.has.clone()).unwrap_or_default(),
        failing: miss.map_or(0, |miss| u32::try_from(miss.failing).unwrap_or(u32::MAX)),
    }
}

fn remedy(remedy: &Remedy) -> proto::Remedy {
    let (then, policy) = match &remedy.then {
        Decision::Allow => ("allow", None),
        Decision::Deny(refusal) => ("deny", refusal.policy.as_deref()),
    };
    proto::Remedy {
        change: remedy.what.to_string(),
        then: then.to_owned(),
        policy: policy.unwrap_or_default().to_owned(),
    }
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
        Action::Custom => "CUSTOM",
        Action::Audit => "AUDIT",
    }
}

fn state(policy: &AuthorizationPolicy) -> &'static str {
    match (policy.dry_run, policy.action, policy.doubt) {
        (true, _, _) => "dry_run",
        (false, Action::Audit, _) => "without_effect",
        (false, _, Some(_)) => "unreadable",
        (false, _, None) => "in_force",
    }
}

/// A likely mistake, without where the object stands.
pub(super) fn finding(finding: Finding) -> proto::Finding {
    proto::Finding {
        code: finding.code.to_owned(),
        level: finding.level.as_str().to_owned(),
        object: finding.subject.to_string(),
        field: finding.field.unwrap_or_default(),
        message: finding.message,
        place: String::new(),
    }
}

pub(super) fn checked(world: &World, checked: Checked) -> proto::CheckedPods {
    let ports = checked
        .ports
        .iter()
        .map(|port| proto::PortMtls { port: port.port.into(), mtls: Some(mtls(&port.mtls)) });
    let policies = checked.policies.iter().map(|policy| proto::AppliedPolicy {
        policy: policy.name.to_string(),
        action: action(policy.action).to_owned(),
        state: state(policy).to_owned(),
        scope: scope(world, policy).to_owned(),
        rules: policy.rules.iter().map(ToString::to_string).collect(),
    });
    proto::CheckedPods {
        pods: checked.pods.iter().map(ToString::to_string).collect(),
        identity: checked.identity.to_string(),
        in_mesh: checked.in_mesh,
        mtls: Some(mtls(&checked.mtls)),
        ports: ports.collect(),
        probe_ports: checked.probe_ports.into_iter().map(u32::from).collect(),
        policies: policies.collect(),
        request_authentications: checked.requests.iter().map(|request| request.name.to_string()).collect(),
        protocols: checked
            .layer7
            .ports
            .iter()
            .map(|port| proto::CheckedPort {
                port: port.port.into(),
                protocol: Some(protocol(&port.protocol)),
                read_for: port.read_for.clone().unwrap_or_default(),
            })
            .collect(),
        issuers: checked.issuers.iter().map(ToString::to_string).collect(),
        findings: checked.layer7.findings.into_iter().map(finding).collect(),
    }
}

/// By what a policy is for a pod that it is for.
fn scope(world: &World, policy: &AuthorizationPolicy) -> &'static str {
    match &policy.target {
        Target::Services(_) => "service",
        Target::Pods(selector) if !selector.is_empty() => "selector",
        Target::Pods(_) if policy.name.namespace == *world.policies.root_namespace() => "mesh",
        Target::Pods(_) => "namespace",
    }
}
