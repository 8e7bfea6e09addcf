//! The Secrets that DestinationRules name, each by a watch of its own: the agent asks for no others.
//!
//! What was known of a Secret stays while the API is away, and is forgotten once no rule names it.

use std::{
    collections::{BTreeSet, HashMap},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use ambit_core::{
    discovery::{ClientCertificate, ClientTls, DestinationRule, Roots},
    model::ObjectName,
};
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, watcher},
};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tokio_stream::StreamExt;

use super::{Hub, object::ApiObject};
use crate::{
    cluster::watch_sentence,
    discovery::{
        Origin, World,
        kinds::{Entry, Key, Kind},
    },
};

/// Secrets that are followed; rules that name others have no certificates.
const MAX_SECRETS: usize = 512;
/// How long a watch that has failed waits before the next.
const WAIT: Duration = Duration::from_secs(5);
/// How long the server keeps a watch, seconds.
const WATCH_SECONDS: u32 = 120;

/// Follows them for ever.
pub(super) async fn follow(client: Client, hub: Arc<Hub>) {
    let Some(mut revisions) = hub.shared.upgrade().map(|shared| shared.revision.subscribe()) else { return };
    let mut tasks = JoinSet::new();
    let mut followed: HashMap<ObjectName, AbortHandle> = HashMap::new();
    loop {
        let Some(world) = hub.shared.upgrade().map(|shared| shared.world.load_full()) else { return };
        let wanted = wanted(&world);
        let gone: Vec<ObjectName> = followed.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        for name in gone {
            if let Some(task) = followed.remove(&name) {
                task.abort();
            }
            hub.write(|ledger| {
                ledger.set_source_problem(&origin(&name), None);
                ledger.forget(&origin(&name));
            });
        }
        for name in wanted {
            followed
                .entry(name.clone())
                .or_insert_with(|| tasks.spawn(follow_one(client.clone(), hub.clone(), name)));
        }
        while tasks.try_join_next().is_some() {}
        if revisions.changed().await.is_err() {
            return;
        }
    }
}

/// The Secrets that rules name.
fn wanted(world: &World) -> BTreeSet<ObjectName> {
    let named = world.mesh.destination_rules().flat_map(|rule| named(rule));
    named.take(MAX_SECRETS).collect()
}

fn named(rule: &DestinationRule) -> BTreeSet<ObjectName> {
    let settings =
        rule.policy.iter().flat_map(|policy| std::iter::once(&policy.default).chain(policy.ports.values()));
    let mut names = BTreeSet::new();
    for settings in settings {
        let ClientTls::Originate(tls) = &settings.tls else { continue };
        if let Some(ClientCertificate::Secret(name)) = &tls.client {
            names.insert(name.clone());
        }
        if let Roots::Secret(name) = &tls.roots {
            names.insert(name.clone());
        }
    }
    names
}

async fn follow_one(client: Client, hub: Arc<Hub>, name: ObjectName) {
    let resource = Kind::Secret.api_resource();
    let api: Api<ApiObject> = Api::namespaced_with(client, &name.namespace, &resource);
    let config = watcher::Config {
        field_selector: Some(format!("metadata.name={}", name.name)),
        timeout: Some(WATCH_SECONDS),
        initial_list_strategy: watcher::InitialListStrategy::default(),
        ..Default::default()
    };
    let mut events = pin!(watcher(api, config));
    let (origin, mut met) = (origin(&name), false);
    while let Some(event) = events.next().await {
        let problem = match event {
            Ok(Event::Init) => {
                met = false;
                continue;
            }
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                met = true;
                take(&hub, &name, &object);
                None
            }
            Ok(Event::Delete(_)) => {
                hub.write(|ledger| ledger.forget(&origin));
                Some(missing())
            }
            Ok(Event::InitDone) if met => None,
            Ok(Event::InitDone) => {
                hub.write(|ledger| ledger.forget(&origin));
                Some(missing())
            }
            Err(error) => {
                let why = watch_sentence(&error);
                hub.write(|ledger| {
                    let text = format!(
                        "Secret {name}, which a DestinationRule names, cannot be read: {why}; the agent's account needs get, list and \
                         watch on secrets in namespace {} (in the chart: egress.secretNamespaces)",
                        name.namespace
                    );
                    ledger.set_source_problem(&origin, Some(text));
                });
                sleep(WAIT.mul_f64(rand::random_range(0.5..1.0))).await;
                continue;
            }
        };
        hub.write(|ledger| {
            let told = problem.map(|text| format!("Secret {name}, which a DestinationRule names, {text}"));
            ledger.set_source_problem(&origin, told);
        });
    }
}

fn missing() -> &'static str {
    "does not exist: connections that need it are refused"
}

fn take(hub: &Hub, name: &ObjectName, object: &ApiObject) {
    let origin = origin(name);
    if let Ok(entry) = Entry::read(Kind::Secret, &object.value, &hub.settings) {
        hub.write(|ledger| ledger.take(&origin, vec![entry], Vec::new()));
    }
}

fn origin(name: &ObjectName) -> Origin {
    Origin::Object(Key { kind: Kind::Secret, name: name.clone() })
}

#[cfg(test)]
mod tests {
    use ambit_core::discovery::{Mesh, Settings};
    use serde_json::json;

    use super::*;
    use crate::discovery::kinds::{Change, Stated};

    #[test]
    fn no_secret_is_asked_for_but_those_that_rules_name() {
        let mut mesh = Mesh::new(Settings::default());
        for (name, tls) in [
            ("both", json!({"mode": "MUTUAL", "credentialName": "api"})),
            ("roots", json!({"mode": "SIMPLE", "credentialName": "kubernetes://roots"})),
            ("none", json!({"mode": "SIMPLE"})),
            ("bad", json!({"mode": "NONSENSE", "credentialName": "bad"})),
        ] {
            let selector = json!({"matchLabels": {"app": "web"}});
            let spec = json!({"host": name, "workloadSelector": selector, "trafficPolicy": {"tls": tls}});
            let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
            let entry = Entry::read(Kind::DestinationRule, &object, &Settings::default()).unwrap();
            let (Stated::Good(Change::Mesh(change)) | Stated::Strictest(Change::Mesh(change))) = entry.stated
            else {
                panic!("{entry:?}")
            };
            mesh.apply(change);
        }
        let world = World { mesh, ..World::default() };
        let names: Vec<String> = wanted(&world).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["shop/api", "shop/roots"]);
    }
}
