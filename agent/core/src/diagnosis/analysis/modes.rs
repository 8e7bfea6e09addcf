//! Modes of mutual TLS: exceptions that open what the mesh closes, objects that have no effect beside others, and what plaintext gets
//! past.

use std::collections::BTreeMap;

use super::{Level, Report, Subject};
use crate::policy::{Action, Attribute, Mode, MtlsMode, MtlsScope, PeerAuthentication};

pub(super) fn look(report: &mut Report<'_>) {
    exceptions(report);
    duplicates(report);
    evaded(report);
}

/// What takes plaintext though the mesh, or the namespace, is STRICT.
fn exceptions(report: &mut Report<'_>) {
    let policies = report.cluster.policies;
    let root = policies.root_namespace();
    let nobody = crate::model::Labels::new();
    // A namespace that no object names shows what the mesh has.
    let mesh = policies.mtls_origin(root, &nobody, None);
    for policy in policies.peer_authentications().filter(|policy| policy.doubt.is_none()) {
        if policy.name.namespace == *root {
            continue;
        }
        let opens = |mode: &Mode| matches!(mode, Mode::Permissive | Mode::Disable);
        let wide = policies.mtls_origin(&policy.name.namespace, &nobody, None);
        let above = if policy.selector.is_empty() { &mesh } else { &wide };
        let by =
            above.rule.by.as_ref().filter(|by| above.rule.mode == MtlsMode::Strict && **by != policy.name);
        let Some(by) = by else { continue };
        let subject = Subject::peer(&policy.name);
        let scope = if above.scope == MtlsScope::Mesh { "mesh" } else { "namespace" };
        if policy.mode.as_ref().is_some_and(opens) {
            let whom = match policy.selector.is_empty() {
                true => format!("all of namespace {}", policy.name.namespace),
                false => "the pods that it selects".to_owned(),
            };
            let message = format!(
                "the {scope} is STRICT by PeerAuthentication {by}, and this one lets plaintext in to {whom}; take it away once \
                 every client is in the mesh"
            );
            report.add("permissive-under-strict", Level::Warning, &subject, "spec.mtls.mode", message);
        }
        for (port, _) in policy.port_modes.iter().filter(|(_, mode)| opens(mode)) {
            let message =
                format!("the {scope} is STRICT by PeerAuthentication {by}, and port {port} takes plaintext");
            let field = format!("spec.portLevelMtls.{port}");
            report.add("permissive-under-strict", Level::Info, &subject, &field, message);
        }
    }
}

/// Objects for the same pods, of which only the oldest counts.
fn duplicates(report: &mut Report<'_>) {
    let policies = report.cluster.policies;
    let mut wide: BTreeMap<&str, Vec<&PeerAuthentication>> = BTreeMap::new();
    let mut selecting: BTreeMap<&str, Vec<&PeerAuthentication>> = BTreeMap::new();
    for policy in policies.peer_authentications().filter(|policy| policy.doubt.is_none()) {
        let map = if policy.selector.is_empty() { &mut wide } else { &mut selecting };
        map.entry(&policy.name.namespace).or_default().push(policy);
    }
    for (namespace, mut of_namespace) in wide {
        of_namespace.sort_by_key(|policy| policy.precedence());
        let mesh = *namespace == **policies.root_namespace();
        let scope = if mesh { "the mesh".to_owned() } else { format!("namespace {namespace}") };
        for later in of_namespace.iter().skip(1) {
            let first = &of_namespace[0].name;
            let message = format!(
                "has no effect: PeerAuthentication {first} speaks for {scope} too, and goes before it by age, then by name"
            );
            report.add(
                "ignored-duplicate",
                Level::Warning,
                &Subject::peer(&later.name),
                "spec.selector",
                message,
            );
        }
    }
    for (namespace, mut of_namespace) in selecting {
        if *namespace == **policies.root_namespace() {
            continue;
        }
        of_namespace.sort_by_key(|policy| policy.precedence());
        for pod in report.cluster.mesh.pods_of(namespace) {
            let mut matching = of_namespace.iter().filter(|policy| policy.is_for(&pod.labels));
            let Some(first) = matching.next() else { continue };
            for later in matching {
                let message = format!(
                    "has no effect on pod {}, not even its ports: PeerAuthentication {} selects it too, and goes before it by \
                     age, then by name",
                    pod.name, first.name
                );
                let subject = Subject::peer(&later.name);
                // One pod is enough to tell.
                if !report
                    .findings
                    .iter()
                    .any(|told| told.code == "ignored-duplicate" && told.subject == subject)
                {
                    report.add("ignored-duplicate", Level::Warning, &subject, "spec.selector", message);
                }
            }
        }
    }
}

/// DENY policies by identity: a client outside the mesh has none, and gets past them where plaintext is taken.
fn evaded(report: &mut Report<'_>) {
    let identity =
        [Attribute::Principal, Attribute::Namespace, Attribute::ServiceAccount, Attribute::TrustDomain];
    for policy in report.readable() {
        if policy.action != Action::Deny || policy.dry_run {
            continue;
        }
        let field = policy.rules.iter().enumerate().find_map(|(at, rule)| {
            let by_identity =
                rule.fields().find(|field| identity.contains(&field.attribute()) && !field.is_negated())?;
            Some(format!("spec.rules[{at}].{}", by_identity.name()))
        });
        let Some(field) = field else { continue };
        let pods = report.pods(&policy.name, &policy.target);
        let policies = report.cluster.policies;
        let open = pods.into_iter().find(|pod| {
            let origin = policies.mtls_origin(&pod.name.namespace, &pod.labels, None);
            report.cluster.is_in_mesh(pod)
                && origin.rule.mode == MtlsMode::Permissive
                && !refuses_plaintext(report, pod)
        });
        if let Some(pod) = open {
            let message = format!(
                "is told by identity, and pod {} takes plaintext, which has none: whom it is about gets in from outside the mesh. \
                 Make mutual TLS STRICT, or deny notPrincipals: [\"*\"] too",
                pod.name
            );
            report.add(
                "plaintext-evades-deny",
                Level::Warning,
                &Subject::authorization(policy),
                &field,
                message,
            );
        }
    }
}

/// Whether policies keep plaintext from a pod altogether: by a DENY of whoever has no identity, or since no ALLOW can take it.
fn refuses_plaintext(report: &Report<'_>, pod: &crate::model::Workload) -> bool {
    let policies = report.cluster.policies.authorizations_for(&pod.name.namespace, &pod.labels);
    let in_force: Vec<_> = policies.filter(|policy| !policy.dry_run).collect();
    let identity =
        [Attribute::Principal, Attribute::Namespace, Attribute::ServiceAccount, Attribute::TrustDomain];
    let needs_identity = |fields: &[crate::policy::Field]| {
        fields.iter().any(|field| identity.contains(&field.attribute()) && !field.is_negated())
    };
    let mut allowing = in_force.iter().filter(|policy| policy.action == Action::Allow).peekable();
    let closed = allowing.peek().is_some()
        && allowing.all(|policy| {
            policy
                .rules
                .iter()
                .all(|rule| rule.sources().is_some_and(|mut sources| sources.all(needs_identity)))
        });
    let denied = in_force.iter().filter(|policy| policy.action == Action::Deny).any(|policy| {
        policy.rules.iter().any(|rule| {
            let mut fields = rule.fields();
            let anybody = |field: &crate::policy::Field| {
                field.attribute() == Attribute::Principal && field.is_negated() && field.values() == ["*"]
            };
            fields.next().is_some_and(anybody) && fields.next().is_none()
        })
    });
    closed || denied
}
