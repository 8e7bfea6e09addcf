use serde_json::json;

use super::*;

fn secret(data: &[(&str, &str)], trust_domain: Option<&str>) -> Value {
    let data: serde_json::Map<String, Value> =
        data.iter().map(|(name, text)| ((*name).to_owned(), BASE64.encode(text.as_bytes()).into())).collect();
    json!({"metadata": {"annotations": trust_domain.map(|domain| json!({TRUST_DOMAIN: domain}))}, "data": data})
}

/// Name, Secret, trust domain and kubeconfig of each cluster, and problems.
fn named(secrets: &[(&str, Value)]) -> (Vec<String>, Vec<String>) {
    let secrets = secrets
        .iter()
        .map(|(name, object)| (ObjectName::new("ambit-system", *name), object.clone()))
        .collect();
    let (all, problems) = wanted(&secrets, "here", &TrustDomain::default());
    let told = all.iter().map(|(name, by)| {
        let text = by.kubeconfig.clone().unwrap_or_else(|problem| format!("! {problem}"));
        format!("{name} {} {} {text}", by.secret, by.trust_domain)
    });
    (told.collect(), problems)
}

#[test]
fn a_key_is_a_cluster() {
    let (all, problems) = named(&[
        ("one", secret(&[("west", "w"), ("east", "e"), ("here", "our own")], None)),
        ("two", secret(&[("north", "n")], Some("td2"))),
        ("zero", json!({})),
    ]);
    let expected = [
        "east ambit-system/one cluster.local e",
        "north ambit-system/two td2 n",
        "west ambit-system/one cluster.local w",
    ];
    assert_eq!((all, problems.len()), (expected.map(str::to_owned).to_vec(), 0));
}

#[test]
fn what_is_wrong_with_a_secret_is_told() {
    let (all, problems) = named(&[
        ("a", secret(&[("west", "first")], None)),
        ("b", secret(&[("west", "second")], None)),
        ("c", secret(&[("east", "e")], Some("Not A Domain"))),
        ("d", json!({"data": {"north": "%"}})),
    ]);
    assert!(
        all[0].starts_with("east") && all[0].contains("! the annotation ambit.dev/trust-domain"),
        "{all:?}"
    );
    assert!(all[1].contains("! it is not base64"), "{all:?}");
    assert_eq!(all[2], "west ambit-system/a cluster.local first");
    assert_eq!(problems, ["Secret ambit-system/b names cluster west, as ambit-system/a does, which counts"]);
    let many: Vec<(String, String)> = (0..40).map(|at| (format!("c{at}"), String::new())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, text)| (&**name, &**text)).collect();
    let (all, problems) = named(&[("many", secret(&many, None))]);
    assert_eq!((all.len(), problems.len()), (MAX_CLUSTERS, 8));
}
