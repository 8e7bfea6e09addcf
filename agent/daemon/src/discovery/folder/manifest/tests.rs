use super::*;
use crate::discovery::folder::documents::{self, Syntax};

fn read(text: &str) -> Manifest {
    let documents = documents::read(text.as_bytes(), Syntax::Yaml);
    assert_eq!(documents.error, None, "{text}");
    Manifest::read(documents.values, &Settings::default())
}

/// `object: field: message` of the one complaint.
fn complaint(text: &str) -> String {
    let manifest = read(text);
    assert_eq!(manifest.complaints.len(), 1, "{text}: {:?}", manifest.complaints);
    let (object, error) = &manifest.complaints[0];
    object.iter().cloned().chain([error.to_string()]).collect::<Vec<_>>().join(": ")
}

#[test]
fn an_object_of_a_version_that_is_not_read_is_named() {
    for (text, expected) in [
        ("{apiVersion: v2, kind: Pod, metadata: {name: a}}", "Pod default/a: apiVersion: \"v2\" is not v1"),
        (
            "{apiVersion: security.istio.io/v1alpha1, kind: PeerAuthentication, metadata: {name: a}}",
            "PeerAuthentication default/a: apiVersion: \"security.istio.io/v1alpha1\" is not security.istio.io/v1 or security.istio.io/v1beta1",
        ),
        ("{kind: Namespace, metadata: {name: a}}", "Namespace a: apiVersion: \"\" is not v1"),
    ] {
        let manifest = read(text);
        let entry = &manifest.entries[0];
        let problem = format!("{}: {}", entry.key, entry.problem.as_ref().unwrap());
        assert!(problem.starts_with(expected), "{problem}");
        assert!(!entry.stated.is_good() && !manifest.unidentified, "{text}");
    }
}

#[test]
fn what_cannot_be_named_is_reported_and_remembered() {
    for (text, expected) in [
        ("just a text", "holds a value that is no object"),
        ("[1]", "holds a value that is no object"),
        ("{a: 1}", "kind: is missing"),
        ("{kind: [Pod]}", "kind: is not a text"),
        ("{apiVersion: v1, kind: Pod}", "Pod: metadata.name: is missing"),
        ("{apiVersion: v1, kind: Pod, metadata: 1}", "Pod: metadata.name: is missing"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: 5}}", "Pod: metadata.name: is not a text"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a/b}}",
            "Pod: metadata.name: \"a/b\" is not a Kubernetes name",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: [x]}}",
            "Pod: metadata.namespace: is not a text",
        ),
        ("{kind: List, items: {}}", "List: items: is not a list"),
        (
            "{apiVersion: security.istio.io/v1, kind: PeerAuthentcation, metadata: {name: p, namespace: shop}}",
            "PeerAuthentcation shop/p: kind: is of an unknown kind",
        ),
    ] {
        assert_eq!(complaint(text), expected);
        assert!(read(text).unidentified, "{text}");
    }
}

#[test]
fn other_kinds_are_passed_over() {
    let manifest = read(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: 5}}\n---\n\
         {apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: s}}\n---\n\
         {apiVersion: example.org/v1, kind: AccessList, spec: {}}\n",
    );
    assert!(manifest.entries.is_empty() && manifest.complaints.is_empty() && !manifest.unidentified);
    // Policies that would restrict access are never passed over in silence.
    let text = "{apiVersion: security.istio.io/v1, kind: TokenPolicy, metadata: {name: p, namespace: shop}}";
    assert_eq!(complaint(text), "TokenPolicy shop/p: kind: is of an unknown kind");
    assert!(read(text).unidentified);
}

#[test]
fn lists_are_unrolled() {
    let manifest = read(
        "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n\
         - {apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n\
         - {apiVersion: v1, kind: PodList, items: [{metadata: {name: a, namespace: shop}}, {metadata: {name: b}}]}\n\
         - {apiVersion: security.istio.io/v1, kind: PeerAuthenticationList, items: [{metadata: {name: p}}]}\n\
         ---\n{apiVersion: v1, kind: List, items: null}\n---\n{apiVersion: v1, kind: List}\n",
    );
    assert!(manifest.complaints.is_empty(), "{:?}", manifest.complaints);
    let names: Vec<_> = manifest.entries.iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!(names, ["Namespace shop", "Pod shop/a", "Pod default/b", "PeerAuthentication default/p"]);
}
