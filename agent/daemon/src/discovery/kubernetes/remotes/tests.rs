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
fn a_secret_says_where_the_pods_of_its_clusters_are() {
    let of = |text: Option<&str>| {
        let mut object = secret(&[("west", "w")], None);
        object["metadata"]["annotations"] = json!({POD_NETWORKS: text});
        let secrets = BTreeMap::from([(ObjectName::new("ambit-system", "a"), object)]);
        let (mut all, _) = wanted(&secrets, "here", &TrustDomain::default());
        let by = all.remove("west").unwrap();
        let networks: Vec<String> = by.networks.iter().map(ToString::to_string).collect();
        (networks.join(" "), by.kubeconfig.err().unwrap_or_default())
    };
    for (text, networks) in [
        (None, ""),
        (Some(""), ""),
        (Some("198.19.11.7/24, fd00:198::/48,198.19.12.1"), "198.19.11.0/24 fd00:198::/48 198.19.12.1"),
    ] {
        assert_eq!(of(text), (networks.to_owned(), String::new()), "{text:?}");
    }
    let many = vec!["198.19.11.0/24"; MAX_NETWORKS + 1].join(",");
    for (text, words) in [
        ("198.19.0.0/33", "is no network"),
        ("west", "pod-networks: "),
        (many.as_str(), "more than 64 networks"),
    ] {
        let (networks, error) = of(Some(text));
        assert!(networks.is_empty() && error.contains(words), "{text}: {error}");
    }
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
