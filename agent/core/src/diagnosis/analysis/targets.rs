//! Whom policies are for, and which of their ports: selectors that match nothing, ports of services, rules that need HTTP where none
//! is spoken.

use std::{collections::BTreeSet, sync::Arc};

use super::{Level, Report, Subject, numbers};
use crate::{
    model::{Labels, ObjectName, Workload},
    policy::{Attribute, AuthorizationPolicy, Field, Rule, Target},
};

pub(super) fn look(report: &mut Report<'_>) {
    let policies = report.cluster.policies;
    for policy in report.readable() {
        let subject = Subject::authorization(policy);
        let pods = report.pods(&policy.name, &policy.target);
        selection(report, &subject, &policy.target, &pods);
        let ports = policy.rules.iter().enumerate().flat_map(|(at, rule)| {
            let fields =
                rule.fields().filter(|field| field.attribute() == Attribute::Port && !field.is_negated());
            fields.map(move |field| (format!("spec.rules[{at}].{}", field.name()), field))
        });
        for (field, values) in ports.collect::<Vec<_>>() {
            let stated = values.values().into_iter().filter_map(|port| port.parse().ok());
            stated.for_each(|port| own_port(report, &subject, &field, port, &pods));
        }
        http(report, &subject, policy, &pods);
    }
    for policy in policies.peer_authentications().filter(|policy| policy.doubt.is_none()) {
        let root = policy.name.namespace == *policies.root_namespace();
        // One with a selector is ignored there, which is told where it is read.
        if policy.selector.is_empty() || root {
            continue;
        }
        let subject = Subject::peer(&policy.name);
        let target = Target::Pods(policy.selector.clone());
        let pods = report.pods(&policy.name, &target);
        selection(report, &subject, &target, &pods);
        for port in policy.port_modes.keys() {
            own_port(report, &subject, &format!("spec.portLevelMtls.{port}"), *port, &pods);
        }
    }
    for request in policies.request_authentications().filter(|request| request.doubt.is_none()) {
        let subject = Subject { kind: "RequestAuthentication", name: request.name.clone() };
        let pods = report.pods(&request.name, &request.target);
        selection(report, &subject, &request.target, &pods);
    }
}

/// Only whether rules that need HTTP are for ports where it is spoken.
pub(super) fn layer7(report: &mut Report<'_>) {
    for policy in report.readable() {
        let pods = report.pods(&policy.name, &policy.target);
        http(report, &Subject::authorization(policy), policy, &pods);
    }
}

/// Whether anybody is selected, and anybody who is in the mesh.
fn selection(report: &mut Report<'_>, subject: &Subject, target: &Target, pods: &[&Arc<Workload>]) {
    let field = match target {
        Target::Pods(selector) if selector.is_empty() => return in_mesh(report, subject, "", pods),
        Target::Pods(_) => "spec.selector.matchLabels",
        // Whoever names no service is told where it is read.
        Target::Services(services) if services.is_empty() => return,
        Target::Services(services) => {
            let of = |service: &&Arc<str>| {
                ObjectName::new(Arc::clone(&subject.name.namespace), Arc::clone(service))
            };
            let mesh = report.cluster.mesh;
            let missing = services.iter().find(|service| mesh.service(&of(service)).is_none());
            if let Some(service) = missing {
                let namespace = &subject.name.namespace;
                let message =
                    format!("there is no service {service} in namespace {namespace}: it has no pods");
                report.add("selects-nothing", Level::Warning, subject, "spec.targetRefs", message);
                return;
            }
            "spec.targetRefs"
        }
    };
    if !pods.is_empty() {
        return in_mesh(report, subject, field, pods);
    }
    let near = match target {
        Target::Pods(selector) => nearest(report, &subject.name.namespace, selector),
        Target::Services(_) => None,
    };
    let hint = near.unwrap_or_else(|| "check the labels".to_owned());
    let message = format!("matches no pod, so that nothing is protected by it: {hint}");
    report.add("selects-nothing", Level::Warning, subject, field, message);
}

/// The label that keeps a selector from matching, if there is one alone.
fn nearest(report: &Report<'_>, namespace: &str, selector: &Labels) -> Option<String> {
    let failing = |pod: &Workload| -> Vec<(String, String)> {
        let fails = selector.iter().filter(|(key, value)| pod.labels.get(*key) != Some(*value));
        fails.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let pods = report.cluster.mesh.pods_of(namespace);
    let (pod, fails) = pods.map(|pod| (pod, failing(pod))).min_by_key(|(_, fails)| fails.len())?;
    let (key, value) = fails.first()?;
    match pod.labels.get(key) {
        Some(has) if fails.len() == 1 => {
            Some(format!("{key}: {value} is asked for, and pod {} has {key}: {has}", pod.name))
        }
        None if fails.len() == 1 && selector.len() > 1 => {
            Some(format!("pod {} has no label {key}", pod.name))
        }
        _ => None,
    }
}

fn in_mesh(report: &mut Report<'_>, subject: &Subject, field: &str, pods: &[&Arc<Workload>]) {
    let none = !pods.is_empty() && !pods.iter().any(|pod| report.cluster.is_in_mesh(pod));
    if none {
        let message = format!(
            "none of the {} pods that it is for is in the mesh, and nobody enforces it: label them or their namespace",
            pods.len()
        );
        report.add("not-in-mesh", Level::Warning, subject, field, message);
    }
}

/// Whether pods listen on a port, as far as they tell.
fn own_port(report: &mut Report<'_>, subject: &Subject, field: &str, port: u16, pods: &[&Arc<Workload>]) {
    let mesh = report.cluster.mesh;
    let states = |pod: &Workload| mesh.stated_ports(&pod.name);
    if pods.is_empty() || pods.iter().any(|pod| states(pod).contains(&port)) {
        return;
    }
    let calls: Vec<_> =
        pods.iter().flat_map(|pod| report.called(pod)).filter(|call| call.port.port == port).collect();
    let targets: BTreeSet<u16> = calls.iter().map(|call| call.target).collect();
    if targets.contains(&port) {
        return;
    }
    if let Some(service) = calls.first().map(|call| call.service) {
        let message = format!(
            "{port} is the port of service {service}, whose pods listen on {}: ports in policies are those of the pods",
            numbers(&targets)
        );
        return report.add("service-port", Level::Error, subject, field, message);
    }
    if pods.iter().all(|pod| !states(pod).is_empty()) {
        let stated: BTreeSet<u16> = pods.iter().flat_map(|pod| states(pod)).copied().collect();
        let message =
            format!("no pod that it is for declares port {port}; they declare {}", numbers(&stated));
        report.add("undeclared-port", Level::Info, subject, field, message);
    }
}

/// Rules that need HTTP, on ports that say they carry something else.
fn http(report: &mut Report<'_>, subject: &Subject, policy: &AuthorizationPolicy, pods: &[&Arc<Workload>]) {
    if policy.rules.iter().all(|rule| rule.layer7_field().is_none()) {
        return;
    }
    let calls = pods.iter().flat_map(|pod| report.called(pod));
    let (opaque, clear): (Vec<_>, Vec<_>) = calls.partition(|call| call.port.is_not_http());
    let opaque: BTreeSet<u16> = opaque.iter().map(|call| call.target).collect();
    let clear = !clear.is_empty();
    for (at, rule) in policy.rules.iter().enumerate() {
        let Some(layer7) = rule.layer7_field() else { continue };
        let named = named_ports(rule);
        let meant: BTreeSet<u16> = match named.is_empty() {
            true if clear => continue,
            true => opaque.clone(),
            false => named.intersection(&opaque).copied().collect(),
        };
        if meant.is_empty() {
            continue;
        }
        let effect = match policy.action {
            crate::policy::Action::Allow => "the rule lets nobody in there",
            _ => "the rule matches there by the rest of it",
        };
        let message = format!(
            "needs HTTP, and port {} carries something else by its name or appProtocol: {effect}",
            numbers(&meant)
        );
        let field = format!("spec.rules[{at}].{}", layer7.name());
        report.add("http-rule-on-other-port", Level::Warning, subject, &field, message);
    }
}

fn named_ports(rule: &Rule) -> BTreeSet<u16> {
    let fields = rule.fields().filter(|field| field.attribute() == Attribute::Port && !field.is_negated());
    fields.flat_map(Field::values).filter_map(|port| port.parse().ok()).collect()
}
