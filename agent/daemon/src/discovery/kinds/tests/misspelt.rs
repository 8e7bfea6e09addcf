//! Fields that are misspelt: without them an object would say something else, and mostly something wider.

use ambit_core::policy::{Doubt, MtlsMode, PolicySet};

use super::*;

#[test]
fn a_misspelt_field_is_named_wherever_it_stands() {
    for (text, field) in [
        (peer_authentication("{mtsl: {mode: STRICT}}"), "spec.mtsl"),
        (peer_authentication("{mtls: {mod: STRICT}}"), "spec.mtls.mod"),
        (
            peer_authentication("{selector: {matchLabel: {app: web}}, mtls: {mode: PERMISSIVE}}"),
            "spec.selector.matchLabel",
        ),
        (
            peer_authentication("{selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mod: STRICT}}}"),
            "spec.portLevelMtls.80.mod",
        ),
        (
            authorization_policy("{selector: {matchLabel: {app: web}}, rules: [{}]}"),
            "spec.selector.matchLabel",
        ),
        (authorization_policy("{targetRef: {kind: Service, nam: x}}"), "spec.targetRef.nam"),
        (authorization_policy("{targetRefs: [{kind: Service, name: x, ns: y}]}"), "spec.targetRefs[0].ns"),
        (authorization_policy("{action: CUSTOM, provider: {nam: x}, rules: [{}]}"), "spec.provider.nam"),
    ] {
        let entry = read(&text);
        let problem = entry.problem.unwrap();
        assert_eq!(problem.field.as_deref(), Some(field), "{text}");
        assert!(problem.message.contains("is no field there"), "{problem}");
        assert!(matches!(entry.stated, Stated::Strictest(_)), "{text}");
    }
}

/// `matchLabel` for `matchLabels` would be the whole namespace, and PERMISSIVE there.
#[test]
fn a_misspelt_exception_opens_nothing() {
    let mut policies = PolicySet::new("ambit-system");
    let strict = peer_authentication("{mtls: {mode: STRICT}}").replace("name: p", "name: wide");
    let misspelt = peer_authentication("{selector: {matchLabel: {app: web}}, mtls: {mode: PERMISSIVE}}");
    for text in [strict, misspelt] {
        let (Stated::Good(Change::Policies(change)) | Stated::Strictest(Change::Policies(change))) =
            read(&text).stated
        else {
            panic!("no policy: {text}")
        };
        policies.apply(change);
    }
    for app in ["web", "db"] {
        let labels = [("app".to_owned(), app.to_owned())].into();
        assert_eq!(policies.compile_for(&"shop".into(), &labels).mtls(80).mode, MtlsMode::Strict, "{app}");
    }
    let doubt = policies.peer_authentications().map(|policy| policy.doubt).collect::<Vec<_>>();
    assert!(doubt.contains(&Some(Doubt::Scope)), "{doubt:?}");
}
