//! Policies of one text, put to a pod and a few connections: for those who look for texts that break them.
//!
//! Promises are assertions here: an explanation is what is decided, and what cannot be read opens nothing to anybody.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use ambit_core::{
    discovery::Settings,
    model::{Labels, SpiffeId},
    policy::{
        Action, Change as PolicyChange, Claims, Decision, Facts, Headers, MtlsMode, Outlook, PolicySet,
        PolicyVerdict, Request, decide, outlook,
    },
};

use serde_json::Value;

use super::{
    folder::{documents, manifest::Manifest},
    kinds::{Change, Entry, Stated},
};
use documents::Syntax;

/// Reads the policies of a text and judges connections by them: all together, and each that cannot be read beside all others.
pub(crate) fn judge_policies(text: &[u8]) {
    let settings = Settings::default();
    let documents = documents::read(text, Syntax::Yaml);
    let policies: Vec<(PolicyChange, bool)> =
        Manifest::read(documents.values, &settings).entries.into_iter().filter_map(policy).collect();
    let set = |of: &dyn Fn(&(PolicyChange, bool)) -> bool| {
        let mut set = PolicySet::new(Arc::clone(&settings.root_namespace));
        policies.iter().filter(|policy| of(policy)).for_each(|(change, _)| drop(set.apply(change.clone())));
        set
    };
    let (all, readable) = (set(&|_| true), set(&|(_, doubtful)| !doubtful));
    for_each_call(|call| {
        let by_all = explained(&all, call);
        // One that took the place of a readable one of the same name may open what that closed.
        if distinct(&policies) && !admits_by_what_is_readable(&policies) {
            assert!(!by_all || explained(&readable, call), "what cannot be read lets in {call:?}");
        }
    });
}

/// The change of an object of the security API, and whether it cannot be read.
fn policy(entry: Entry) -> Option<(PolicyChange, bool)> {
    match entry.stated {
        Stated::Good(Change::Policies(change)) => Some((change, false)),
        Stated::Strictest(Change::Policies(change)) => Some((change, true)),
        _ => None,
    }
}

fn distinct(policies: &[(PolicyChange, bool)]) -> bool {
    let name = |change: &PolicyChange| match change {
        PolicyChange::PeerAuthentication(policy) => (0, policy.name.clone()),
        PolicyChange::AuthorizationPolicy(policy) => (1, policy.name.clone()),
        PolicyChange::RequestAuthentication(request) => (2, request.name.clone()),
        PolicyChange::PeerAuthenticationGone(name)
        | PolicyChange::AuthorizationPolicyGone(name)
        | PolicyChange::RequestAuthenticationGone(name) => (3, name.clone()),
    };
    let mut names: Vec<_> = policies.iter().map(|(change, _)| name(change)).collect();
    names.sort();
    names.windows(2).all(|pair| pair[0] != pair[1])
}

/// The rules of an ALLOW policy that can be read still let in, though another rule of it cannot be.
fn admits_by_what_is_readable(policies: &[(PolicyChange, bool)]) -> bool {
    policies.iter().any(|(change, doubtful)| match change {
        PolicyChange::AuthorizationPolicy(policy) => {
            *doubtful && policy.action == Action::Allow && !policy.rules.is_empty()
        }
        _ => false,
    })
}

/// Whether a connection is let in; what is told of it must come to the same.
fn explained(set: &PolicySet, facts: &Facts<'_>) -> bool {
    let (namespace, labels): (Arc<str>, _) =
        ("shop".into(), Labels::from([("app".to_owned(), "web".to_owned())]));
    let compiled = set.compile_for(&namespace, &labels);
    let decision = decide(&compiled, facts);
    if let Outlook::Same(before) = outlook(&compiled, &Facts { request: None, ..*facts }) {
        assert_eq!(before == Decision::Allow, decision == Decision::Allow, "{facts:?}");
    }
    let told = set.explain(&namespace, &labels, facts, None);
    assert_eq!(told.decision, decision);
    assert_eq!(&told.mtls.rule, compiled.mtls(facts.port));
    let mut allowing = told.policies.iter().filter(|policy| policy.is_allowing()).peekable();
    let allowed = allowing.peek().is_none() || allowing.any(|policy| policy.matched.is_some());
    let plaintext = facts.peer.is_none() && told.mtls.rule.mode == MtlsMode::Strict;
    let unreadable =
        set.request_authentications_for(&namespace, &labels).any(|request| request.doubt.is_some());
    let token = facts.request.is_some() && unreadable;
    let follows = !plaintext && !token && allowed && !told.policies.iter().any(PolicyVerdict::refuses);
    assert_eq!(follows, decision == Decision::Allow, "{told:?}");
    follows
}

fn for_each_call(mut judge: impl FnMut(&Facts<'_>)) {
    let peers: Vec<SpiffeId> = ["spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/a/sa/x"]
        .iter()
        .filter_map(|id| id.parse().ok())
        .collect();
    let claims =
        [("iss", "https://issuer.example"), ("sub", "user"), ("aud", "shop"), ("scope", "read write")];
    let claims = claims.map(|(name, value)| (name.to_owned(), Value::from(value)));
    let token = Claims::new(claims.into_iter().collect());
    let request = |method, path, token| Request {
        method,
        authority: "shop.example:8080",
        path,
        headers: &OneHeader,
        remote_ip: IpAddr::from([192, 0, 2, 1]),
        token,
    };
    let requests = [None, Some(request("GET", "/", None)), Some(request("POST", "/admin/a", Some(&token)))];
    let destination_ip = IpAddr::from([10, 0, 0, 1]);
    for source_ip in [IpAddr::from([10, 0, 0, 9]), IpAddr::from([192, 0, 2, 1])] {
        for port in [80, 8080] {
            for peer in peers.iter().map(Some).chain([None]) {
                for request in requests.iter().map(Option::as_ref) {
                    let facts =
                        Facts { port, peer, source_ip, destination_ip, request, admitted: false, sni: None };
                    judge(&facts);
                }
            }
        }
    }
}

/// The header fields of every request here.
#[derive(Debug)]
struct OneHeader;

impl Headers for OneHeader {
    fn joined(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        (name == "x").then_some(Cow::Borrowed(b"1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_of_a_file_are_judged() {
        judge_policies(
            b"{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: shop}, spec: {mtls: {mode: STRICT}}}\n\
              ---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: q, namespace: shop}, spec: {action: NO}}\n\
              ---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: r, namespace: shop}, spec: {rules: [{}]}}\n",
        );
    }
}
