use super::*;

const UID: &str = "0f6ec1ec-66c5-4ae3-9c29-9e1d0b2f2a51";
const UNDERLINED: &str = "0f6ec1ec_66c5_4ae3_9c29_9e1d0b2f2a51";
const PLAIN: &str = "0f6ec1ec66c54ae39c299e1d0b2f2a51";

/// Who owns what a test makes.
fn owner() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn wanted() -> HashSet<CgroupUid> {
    HashSet::from([CgroupUid::parse(UID).unwrap()])
}

#[test]
fn a_pod_is_known_by_its_directory_in_every_layout() {
    let uid = CgroupUid::parse(UID);
    assert!(uid.is_some() && uid == CgroupUid::parse(PLAIN));
    for name in [
        format!("pod{UID}"),
        format!("pod{PLAIN}"),
        format!("kubepods-pod{UNDERLINED}.slice"),
        format!("kubepods-burstable-pod{UNDERLINED}.slice"),
        format!("kubepods-besteffort-pod{UNDERLINED}.slice"),
        format!("kubepods-burstable-pod{PLAIN}.slice"),
        format!("kubelet-kubepods-burstable-pod{UNDERLINED}.slice"),
        format!("kube_a-kubepods-pod{UNDERLINED}.slice"),
    ] {
        assert_eq!(CgroupUid::of_directory(&name), uid, "{name}");
    }
}

#[test]
fn other_directories_are_no_pods() {
    for name in [
        "",
        "pod",
        "kubepods",
        "kubepods.slice",
        "kubepods-burstable.slice",
        "pod0f6ec1ec",
        "podman-123.scope",
        "machine-libpod_pod_0f6ec1ec.slice",
        &format!("pod{UID}x"),
        &format!("pod+{}", &PLAIN[1..]),
        &format!("pod{}", UID.replace("66c5-", "66c5x")),
        &format!("cri-containerd-{PLAIN}{PLAIN}.scope"),
        &format!("xpod{UID}"),
    ] {
        assert_eq!(CgroupUid::of_directory(name), None, "{name}");
    }
}

#[test]
fn processes_come_from_the_containers_of_every_layout() {
    for path in [
        format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERLINED}.slice"),
        format!("kubepods.slice/kubepods-pod{UNDERLINED}.slice"),
        format!("kubepods/burstable/pod{UID}"),
        format!("kubepods/pod{UID}"),
        format!("kube-a/kubepods/besteffort/pod{UID}"),
        format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDERLINED}.slice"),
        format!(
            "system.slice/docker-{PLAIN}{PLAIN}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{UNDERLINED}.slice"
        ),
    ] {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join(&path);
        for (container, processes) in [
            ("", ""),
            ("sandbox", "70\n"),
            ("app", "0\n71\n"),
            ("crun/container", "72\n"),
            ("app/nested", "73\n"),
        ] {
            fs::create_dir_all(pod.join(container)).unwrap();
            fs::write(pod.join(container).join("cgroup.procs"), processes).unwrap();
        }
        let other = pod.with_file_name("podffffffff-66c5-4ae3-9c29-9e1d0b2f2a51");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("cgroup.procs"), "99\n").unwrap();
        let mut found = pods_below(root.path(), &wanted(), owner());
        let mut processes = found.remove(&CgroupUid::parse(UID).unwrap()).unwrap();
        processes.sort_unstable();
        assert_eq!((processes, found.len()), (vec![70, 71, 72], 0), "{path}");
    }
}

#[test]
fn a_pod_in_a_pod_is_not_looked_for() {
    let root = tempfile::tempdir().unwrap();
    let outer = root.path().join("kubepods/podffffffff-66c5-4ae3-9c29-9e1d0b2f2a51/app/kubepods");
    fs::create_dir_all(outer.join(format!("pod{UID}"))).unwrap();
    assert!(pods_below(root.path(), &wanted(), owner()).is_empty());
}

#[test]
fn the_hierarchy_of_version_one_is_found_on_hybrid_hosts_only() {
    let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                  cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
    assert_eq!(version_one(hybrid).as_deref(), Some(Path::new("/sys/fs/cgroup/pids")));
    assert_eq!(version_one("cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"), None);
}

#[test]
fn the_node_s_own_namespace_is_no_pod_s() {
    assert!(sandbox(&[std::process::id()]).is_none(), "the node's own namespace was taken");
}

/// Directories that bear a pod's UID where no kubelet makes them.
#[test]
fn a_directory_s_name_is_not_enough() {
    for path in [
        format!("pod{UID}"),
        format!("system.slice/pod{UID}"),
        format!("kubepods/system/pod{UID}"),
        format!("kubepods/burstable/other/pod{UID}"),
        format!("xkubepods/pod{UID}"),
        format!("kubepods.scope/pod{UID}"),
        format!("user.slice/app/burstable/pod{UID}"),
    ] {
        let root = tempfile::tempdir().unwrap();
        make(&root.path().join(&path).join("sandbox"), "70\n");
        assert!(pods_below(root.path(), &wanted(), owner()).is_empty(), "{path}");
    }
}

#[test]
fn a_group_that_others_may_write_to_is_not_believed() {
    use std::os::unix::fs::PermissionsExt as _;
    let path = format!("user.slice/kubepods/burstable/pod{UID}/sandbox");
    for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
        let root = tempfile::tempdir().unwrap();
        make(&root.path().join(&path), "70\n");
        assert_eq!(pods_below(root.path(), &wanted(), owner()).len(), 1);
        let group = root.path().join(&path[..at]);
        fs::set_permissions(&group, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(pods_below(root.path(), &wanted(), owner()).is_empty(), "{}", &path[..at]);
    }
    let root = tempfile::tempdir().unwrap();
    make(&root.path().join(&path), "70\n");
    assert!(pods_below(root.path(), &wanted(), owner() + 1).is_empty(), "of another owner");
}

#[test]
fn of_two_groups_of_one_pod_neither_is_believed() {
    let root = tempfile::tempdir().unwrap();
    let (first, second) = (format!("kubepods/burstable/pod{UID}/x"), format!("other/kubepods/pod{UID}/x"));
    make(&root.path().join(&first), "70\n");
    make(&root.path().join(&second), "");
    assert_eq!(pods_below(root.path(), &wanted(), owner()).len(), 1, "an empty one is in nobody's way");
    make(&root.path().join(&second), "71\n");
    assert!(pods_below(root.path(), &wanted(), owner()).is_empty());
}

fn make(group: &Path, processes: &str) {
    fs::create_dir_all(group).unwrap();
    fs::write(group.join("cgroup.procs"), processes).unwrap();
}
