//! Names in rules that nothing in the cluster bears. Where hardly anything is known of the cluster, as from a folder of policies alone,
//! nothing is said.

use std::{collections::BTreeSet, sync::Arc};

use super::{Level, Report, Subject, rules::account_of};
use crate::policy::{Attribute, Field};

pub(super) fn look(report: &mut Report<'_>) {
    let mesh = report.cluster.mesh;
    // Of other clusters too: they are whom policies of this one let in.
    let pods = mesh.pods().chain(mesh.remote_pods());
    let accounts: BTreeSet<(&str, &str)> =
        pods.map(|pod| (pod.identity.namespace(), pod.identity.service_account())).collect();
    if accounts.is_empty() {
        return;
    }
    for policy in report.readable() {
        let subject = Subject::authorization(policy);
        for (at, rule) in policy.rules.iter().enumerate() {
            for field in rule.fields() {
                let path = format!("spec.rules[{at}].{}", field.name());
                for name in named(field) {
                    look_for(report, &subject, &path, &name, &accounts);
                }
            }
        }
    }
}

/// A namespace, and maybe a service account in it.
type Name = (Arc<str>, Option<Arc<str>>);

/// The names that stand in a field as they are.
fn named(field: &Field) -> BTreeSet<Name> {
    let values = field.values().into_iter();
    match field.attribute() {
        Attribute::Namespace => {
            let exact = values.filter(|value| !value.contains('*'));
            exact.map(|namespace| (namespace.into(), None)).collect()
        }
        Attribute::Principal => {
            let accounts = values.filter_map(|value| account_of(&value));
            accounts.map(|account| (account.namespace, Some(account.name))).collect()
        }
        Attribute::ServiceAccount => {
            let accounts = values.filter_map(|value| {
                let (namespace, name) = value.split_once('/')?;
                Some((namespace.into(), Some(name.into())))
            });
            accounts.collect()
        }
        _ => BTreeSet::new(),
    }
}

fn look_for(
    report: &mut Report<'_>,
    subject: &Subject,
    path: &str,
    (namespace, account): &Name,
    accounts: &BTreeSet<(&str, &str)>,
) {
    if !report.cluster.mesh.has_namespace(namespace) {
        let message = format!("nothing is known of namespace {namespace}: is it spelt so?");
        report.add("unknown-namespace", Level::Warning, subject, path, message);
    } else if let Some(account) = account
        && !accounts.contains(&(&**namespace, &**account))
    {
        let others: Vec<&str> =
            accounts.iter().filter(|(space, _)| **space == **namespace).map(|(_, name)| *name).collect();
        let hint = match others.is_empty() {
            true => "no pod runs in that namespace".to_owned(),
            false => format!("those there have {}", super::super::reference::listed(others.into_iter())),
        };
        let message = format!("no pod has service account {account} in namespace {namespace}; {hint}");
        report.add("unknown-principal", Level::Warning, subject, path, message);
    }
}
