use ambit_core::policy::Mode;

use super::*;

#[test]
fn a_peer_authentication() {
    let spec = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}, '9090': {mode: UNSET}, 1: null}}";
    for version in ["v1", "v1beta1"] {
        let text = peer_authentication(spec).replace("istio.io/v1", &format!("istio.io/{version}"));
        let entry = read(&text);
        let Stated::Good(Change::Policies(PolicyChange::PeerAuthentication(policy))) = entry.stated else {
            panic!("no policy")
        };
        assert_eq!((policy.mode, policy.created), (Some(Mode::Strict), None));
        assert_eq!(policy.port_modes.iter().collect::<Vec<_>>(), [(&8080, &Mode::Disable)]);
        assert_eq!(policy.selector["app"], "web");
    }
    for inherits in [
        "null",
        "{}",
        "{mtls: null}",
        "{mtls: {}}",
        "{mtls: {mode: null}}",
        "{mtls: {mode: UNSET}}",
        "{selector: null}",
    ] {
        let Change::Policies(PolicyChange::PeerAuthentication(policy)) = one(&peer_authentication(inherits))
        else {
            panic!("no policy")
        };
        assert_eq!(policy.mode, None, "{inherits}");
    }
}

/// Whoever looks at the object and whoever looks at the agents is told the same.
#[test]
fn what_has_another_effect_than_it_seems_is_told_in_status_and_condition() {
    for (spec, expected) in [
        ("{mtls: {mode: DISABLE}}", &["spec.mtls.mode: DISABLE has the effect of PERMISSIVE"][..]),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: DISABLE}}}",
            &["spec.portLevelMtls.80.mode: DISABLE has the effect of PERMISSIVE"],
        ),
        ("{selector: {}}", &["spec.selector: has no labels: the object speaks for the whole namespace"]),
        ("{selector: {}, mtls: {mode: DISABLE}}", &["has no labels", "DISABLE has the effect"]),
    ] {
        let entry = read(&peer_authentication(spec));
        let (told, condition) = (entry.problem.unwrap().to_string(), entry.unsupported.unwrap());
        assert!(expected.iter().all(|part| told.contains(part)), "{spec}: {told}");
        assert_eq!(told, condition, "{spec}");
        assert!(entry.stated.is_good());
    }
}

/// What Istio refuses, and every type that may be wrong.
#[test]
fn bad_peer_authentications() {
    for (spec, expected) in [
        (
            "{mtls: {mode: STRIKT}}",
            r#"spec.mtls.mode: "STRIKT" is not one of UNSET, DISABLE, PERMISSIVE, STRICT"#,
        ),
        (
            "{mtls: {mode: strict}}",
            r#"spec.mtls.mode: "strict" is not one of UNSET, DISABLE, PERMISSIVE, STRICT"#,
        ),
        ("{mtls: {mode: ''}}", "spec.mtls.mode: is empty"),
        ("{mtls: {mode: 3}}", "spec.mtls.mode: invalid type: integer `3`, expected a string"),
        ("{mtls: STRICT}", r#"spec.mtls: invalid type: string "STRICT", expected an object"#),
        ("[]", "spec: invalid type: sequence, expected an object"),
        (
            "{selector: {matchLabels: {app: 1}}}",
            "spec.selector.matchLabels.app: invalid type: integer `1`, expected a string",
        ),
        (
            "{selector: {matchLabels: {'a*': b}}}",
            r#"spec.selector.matchLabels: "a*: b": no wildcards are allowed"#,
        ),
        (
            "{selector: {matchLabels: {a: 'b*'}}}",
            r#"spec.selector.matchLabels: "a: b*": no wildcards are allowed"#,
        ),
        ("{selector: {matchLabels: {'': b}}}", r#"spec.selector.matchLabels: ": b": an empty key"#),
        (
            "{portLevelMtls: {80: {mode: STRICT}}}",
            "spec.portLevelMtls: needs a selector with matchLabels: it cannot speak for a whole namespace",
        ),
        (
            "{selector: {matchLabels: {}}, portLevelMtls: {80: {mode: STRICT}}}",
            "spec.portLevelMtls: needs a selector with matchLabels: it cannot speak for a whole namespace",
        ),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {}}", "spec.portLevelMtls: is empty"),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {mode: STRICT}}}",
            r#"spec.portLevelMtls.0: "0" is not a port (1 to 65535)"#,
        ),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {65536: {mode: STRICT}}}",
            r#"spec.portLevelMtls.65536: "65536" is not a port (1 to 65535)"#,
        ),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}",
            r#"spec.portLevelMtls.http: "http" is not a port (1 to 65535)"#,
        ),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {'080': {mode: STRICT}}}",
            r#"spec.portLevelMtls.080: "080" is not a port (1 to 65535)"#,
        ),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: ON}}}",
            r#"spec.portLevelMtls.80.mode: "ON" is not one of UNSET, DISABLE, PERMISSIVE, STRICT"#,
        ),
    ] {
        let text = peer_authentication(spec);
        let counts = "; until it can be read it counts as STRICT for all that it may select";
        assert_eq!(complaint(&text), format!("PeerAuthentication shop/p: {expected}{counts}"));
        assert!(!read(&text).stated.is_good(), "{spec} was taken");
    }
}

#[test]
fn a_selector_without_effect_is_pointed_out_but_valid() {
    for (text, expected) in [
        (peer_authentication("{selector: {}}"), "has no labels"),
        (
            peer_authentication("{selector: {matchLabels: {a: b}}}").replace("shop", "ambit-system"),
            "has no effect",
        ),
    ] {
        assert!(complaint(&text).contains(&format!("spec.selector: {expected}")), "{text}");
        assert!(read(&text).stated.is_good());
    }
}

/// Istio's root namespace and ours are what people take for the mesh's.
#[test]
fn policies_that_only_look_mesh_wide_say_so() {
    let whole = [peer_authentication("{mtls: {mode: STRICT}}"), authorization_policy("{rules: [{}]}")];
    let some = [
        peer_authentication("{selector: {matchLabels: {app: web}}}"),
        authorization_policy("{selector: {matchLabels: {app: web}}, rules: [{}]}"),
    ];
    for (texts, namespace, told) in [
        (&whole, "istio-system", true),
        (&whole, "ambit-system", false),
        (&whole, "shop", false),
        (&some, "istio-system", false),
    ] {
        for text in texts {
            let entry = read(&text.replace("namespace: shop", &format!("namespace: {namespace}")));
            let narrow = entry.unsupported.as_deref().is_some_and(|text| text.contains("root namespace"));
            assert_eq!((narrow, entry.problem.is_some()), (told, told), "{text} in {namespace}: {entry:?}");
            assert!(!entry.idle);
        }
    }
}
