//! From where pods went outside, or were kept from going, to ServiceEntries: one for each name that their TLS had, and one for each
//! address of which no name is known.

use std::collections::{BTreeMap, BTreeSet};

use ambit_proto::admin::v1::ObservationsResponse;
use serde::Serialize;

use ambit_core::reason::Reason;

/// What is suggested.
pub(super) struct Suggested(Vec<Entry>);

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    hosts: [String; 1],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
    ports: Vec<Port>,
    resolution: &'static str,
    export_to: [&'static str; 1],
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Port {
    number: u32,
    name: String,
    protocol: &'static str,
}

/// A destination as an entry has it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Name(String),
    Address(String),
}

/// Entries for the namespaces asked about, for their own pods only.
pub(super) fn suggest(agents: &[ObservationsResponse], is_about: impl Fn(&str) -> bool) -> Suggested {
    let mut places = BTreeMap::<(String, Place), BTreeSet<u32>>::new();
    for agent in agents {
        for seen in agent.outside.iter().filter(|seen| is_about(&seen.namespace)) {
            let place = match &*seen.name {
                "" => Place::Address(seen.ip.clone()),
                name => Place::Name(name.to_owned()),
            };
            places.entry((seen.namespace.clone(), place)).or_default().insert(seen.port);
        }
        for denial in agent.denials.iter().filter(|denial| denial.reason == Reason::EgressDenied.label()) {
            let (Some(source), Some(destination)) = (&denial.source, &denial.destination) else { continue };
            if is_about(&source.namespace) {
                let place = (source.namespace.clone(), Place::Address(destination.ip.clone()));
                places.entry(place).or_default().insert(denial.port);
            }
        }
    }
    Suggested(places.into_iter().map(|((namespace, place), ports)| entry(namespace, place, &ports)).collect())
}

fn entry(namespace: String, place: Place, ports: &BTreeSet<u32>) -> Entry {
    let label = |text: &str| -> String {
        let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        text.chars().map(legal).collect()
    };
    let port = |prefix: &str, protocol, number: &u32| Port {
        number: *number,
        name: format!("{prefix}-{number}"),
        protocol,
    };
    let (name, spec) = match place {
        Place::Name(host) => (
            label(&host),
            Spec {
                ports: ports.iter().map(|number| port("tls", "TLS", number)).collect(),
                hosts: [host],
                addresses: Vec::new(),
                resolution: "DNS",
                export_to: ["."],
            },
        ),
        Place::Address(ip) => (
            label(&ip),
            Spec {
                // An entry needs a host; this one is nobody's (RFC 2606).
                hosts: [format!("{}.outside.invalid", label(&ip))],
                addresses: vec![ip],
                ports: ports.iter().map(|number| port("tcp", "TCP", number)).collect(),
                resolution: "NONE",
                export_to: ["."],
            },
        ),
    };
    Entry {
        api_version: "networking.istio.io/v1",
        kind: "ServiceEntry",
        metadata: Metadata { name: format!("observed-{}", name.trim_matches('-')), namespace },
        spec,
    }
}

impl Suggested {
    pub(super) fn yaml(&self) -> anyhow::Result<String> {
        let mut out = String::from(
            "# Where pods went outside, or were kept from going. Names are those that applications have put into their TLS: look \
             whether they are what you mean.\n",
        );
        for entry in &self.0 {
            out.push_str("---\n");
            out.push_str(&serde_yaml_ng::to_string(entry)?);
        }
        Ok(out)
    }

    pub(super) fn json(&self) -> anyhow::Result<String> {
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": self.0 });
        Ok(serde_json::to_string_pretty(&list)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use ambit_proto::admin::v1::{Denial, ObservedOutside, Party};

    use super::*;

    fn seen(namespace: &str, name: &str, ip: &str, port: u32) -> ObservedOutside {
        let (namespace, name, ip) = (namespace.to_owned(), name.to_owned(), ip.to_owned());
        ObservedOutside { namespace, name, ip, port, ..ObservedOutside::default() }
    }

    #[test]
    fn names_and_addresses_become_entries_of_their_namespaces() {
        let party = |namespace: &str, ip: &str| {
            Some(Party { namespace: namespace.to_owned(), ip: ip.to_owned(), ..Party::default() })
        };
        let denied = Denial {
            reason: "egress_denied".to_owned(),
            source: party("shop", ""),
            destination: party("", "192.0.2.7"),
            port: 5432,
            ..Denial::default()
        };
        let other = Denial { reason: "policy_denied".to_owned(), ..denied.clone() };
        let agent = ObservationsResponse {
            outside: vec![
                seen("shop", "api.example.com", "192.0.2.1", 443),
                seen("shop", "api.example.com", "192.0.2.2", 8443),
                seen("other", "", "192.0.2.1", 25),
            ],
            denials: vec![denied, other],
            ..ObservationsResponse::default()
        };
        let suggested = suggest(&[agent], |namespace| namespace == "shop");
        let text = suggested.yaml().unwrap();
        assert_eq!(suggested.0.len(), 2, "{text}");
        for words in
            ["observed-api-example-com", "number: 8443", "192-0-2-7.outside.invalid", "resolution: NONE"]
        {
            assert!(text.contains(words), "no {words} in {text}");
        }
        let json: serde_json::Value = serde_json::from_str(&suggested.json().unwrap()).unwrap();
        assert_eq!(json["items"].as_array().unwrap().len(), 2);
    }
}
