use super::*;
use crate::discovery::{
    Change,
    mesh::tests::{mesh, name, pod},
};

fn twin(id: &str, ip: &str) -> Pod {
    Pod { uid: "u".into(), ..pod(id, &[ip]) }
}

fn uid(mesh: &Mesh, id: &str) -> String {
    mesh.pod(&name(id)).unwrap().uid.to_string()
}

#[test]
fn pods_of_one_uid_are_told_apart() {
    let mut mesh = mesh([twin("shop/a", "10.0.0.1")]);
    assert_eq!((uid(&mesh, "shop/a"), mesh.shared_uids().count()), ("u".to_owned(), 0));
    let delta = mesh.apply(Change::Pod(Arc::new(twin("shop/b", "10.0.0.2"))));
    assert_eq!((uid(&mesh, "shop/a"), uid(&mesh, "shop/b")), ("shop/a/u".to_owned(), "shop/b/u".to_owned()));
    assert_eq!(delta.pods().count(), 2, "the first one is another pod to those who follow");
    assert!(mesh.pods_on("n1").all(|pod| pod.enrolled && &*pod.uid != "u"));
    let shared: Vec<_> = mesh
        .shared_uids()
        .map(|(uid, pods)| (uid.to_string(), pods.map(ToString::to_string).collect::<Vec<_>>()))
        .collect();
    assert_eq!(shared, [("u".to_owned(), vec!["shop/a".to_owned(), "shop/b".to_owned()])]);
    assert!(mesh.pod_by_uid("u").is_none(), "either of them");

    let delta = mesh.apply(Change::Pod(Arc::new(twin("plain/c", "10.0.0.3"))));
    assert_eq!(delta.pods().count(), 1);
    mesh.apply(Change::PodGone(name("plain/c")));
    let delta = mesh.apply(Change::PodGone(name("shop/b")));
    assert_eq!(
        (uid(&mesh, "shop/a"), delta.pods().count(), mesh.shared_uids().count()),
        ("u".to_owned(), 2, 0)
    );
    assert_eq!(mesh.pod_by_uid("u").map(|pod| &pod.name), Some(&name("shop/a")));
    // One that becomes another pod leaves the UID to the rest.
    mesh.apply(Change::Pod(Arc::new(twin("shop/b", "10.0.0.2"))));
    mesh.apply(Change::Pod(Arc::new(pod("shop/a", &["10.0.0.1"]))));
    assert_eq!((uid(&mesh, "shop/a"), uid(&mesh, "shop/b")), ("shop/a".to_owned(), "u".to_owned()));
}
