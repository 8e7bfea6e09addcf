use ambit_core::model::ObjectName;

use super::*;

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      containers: [{name: main, image: i, ports: [{containerPort: 8080}]}]
";

#[test]
fn a_deployment_counts_as_a_pod_of_its_template() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "web.yaml", DEPLOYMENT);
    write(dir.path(), "notes.txt", "not read");
    write(
        dir.path(),
        "deep/ns.yaml",
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {ambit.dev/dataplane: enabled}}}",
    );
    let paths = [dir.path().to_owned()];
    let web = ObjectName::new("shop", "web");
    let flat = read_manifests(&paths, false, &Settings::default()).unwrap();
    assert_eq!((flat.files, flat.world.mesh.opts_in(&web)), (1, Some(false)));
    let deep = read_manifests(&paths, true, &Settings::default()).unwrap();
    assert_eq!((deep.files, deep.world.mesh.opts_in(&web)), (2, Some(true)));
    let pod = deep.world.mesh.pod(&web).unwrap();
    assert_eq!(pod.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((pod.labels["app"].as_str(), deep.world.mesh.stated_ports(&web)), ("web", &[8080][..]));
    assert!(deep.world.synced && deep.world.problems.is_empty(), "{:?}", deep.world.problems);
}

#[test]
fn where_its_pods_are_there_a_deployment_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: web-5d4f7c-x7k2p, namespace: shop}}";
    let list = format!("{{apiVersion: v1, kind: List, items: [{pod}]}}");
    write(dir.path(), "all.yaml", &format!("{DEPLOYMENT}---\n{list}\n"));
    let reading = read_manifests(&[dir.path().join("all.yaml")], false, &Settings::default()).unwrap();
    let names: Vec<_> = reading.world.mesh.pods().map(|pod| pod.name.to_string()).collect();
    assert_eq!(names, ["shop/web-5d4f7c-x7k2p"]);
}

#[test]
fn a_path_that_is_not_there_is_an_error_and_a_bad_object_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let missing = read_manifests(&[dir.path().join("none")], false, &Settings::default());
    assert!(missing.unwrap_err().to_string().starts_with("cannot read "));
    write(
        dir.path(),
        "p.yaml",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: shop}, spec: {action: NO}}",
    );
    let reading = read_manifests(&[dir.path().to_owned()], false, &Settings::default()).unwrap();
    let problem = &reading.world.problems[0];
    assert_eq!((problem.field.as_deref(), problem.notice), (Some("spec.action"), false));
    assert_eq!(reading.places.len(), 1);
}
