use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    sync::Arc,
};

use ambit_core::{discovery::Mesh, model::Labels, policy::MtlsMode};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;

use super::*;
use crate::discovery::World;

/// Changes are promised within a second; a loaded machine that builds beside the tests gets more.
const SOON: Duration = Duration::from_secs(10);

fn policy(name: &str, mode: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

fn pod(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: n1}}\n\
         status: {{podIP: {ip}}}\n"
    )
}

fn start(dir: &Path) -> Feed {
    watch(dir, Settings::default()).unwrap()
}

fn mode(world: &World) -> MtlsMode {
    world.policies.compile_for(&"shop".into(), &Labels::new()).mtls(80).mode
}

fn has(mesh: &Mesh, ip: &str) -> bool {
    mesh.workload_by_ip(ip.parse().unwrap()).is_some()
}

fn problems(world: &World) -> Vec<String> {
    world.problems.iter().map(ToString::to_string).collect()
}

/// Waits until the world is as it should be.
fn until(feed: &Feed, what: &str, holds: impl Fn(&World) -> bool) -> Arc<World> {
    let start = Instant::now();
    loop {
        let world = feed.world();
        if holds(&world) {
            return world;
        }
        assert!(start.elapsed() < SOON, "{what}: {:?}", problems(&world));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_first_state_is_complete() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("a.yaml", &pod("a", "10.0.0.1"));
    write("b.yml", &pod("b", "10.0.0.2"));
    write(
        "c.json",
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c"}, "status": {"podIP": "10.0.0.3"}}"#,
    );
    write(".hidden.yaml", &pod("d", "10.0.0.4"));
    write("e.yaml~", &pod("e", "10.0.0.5"));
    write("#f.yaml#", &pod("f", "10.0.0.6"));
    write("g.txt", "not: [a manifest");
    fs::create_dir(dir.path().join("sub")).unwrap();
    write("sub/h.yaml", &pod("h", "10.0.0.8"));
    symlink(dir.path().join("g.txt"), dir.path().join("..data")).unwrap();
    let feed = start(dir.path());
    let world = feed.world();
    assert!(world.synced && world.problems.is_empty(), "{:?}", world.problems);
    let found: Vec<_> = (1..9).filter(|n| has(&world.mesh, &format!("10.0.0.{n}"))).collect();
    assert_eq!(found, [1, 2, 3]);
}

#[test]
fn a_folder_that_cannot_be_read_is_an_error() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("missing");
    let error = watch(&missing, Settings::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot read the manifest folder {}", missing.display()));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(watch(&file, Settings::default()), Err(DiscoveryError::Folder { .. })));
}

#[test]
fn changes_take_effect() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.yaml");
    let feed = start(dir.path());
    let mut revisions = feed.subscribe();
    let first = *revisions.borrow_and_update();

    fs::write(&path, policy("p", "STRICT")).unwrap();
    until(&feed, "new file", |world| mode(world) == MtlsMode::Strict);
    // Published just after it is in force.
    until(&feed, "a new revision", |_| revisions.has_changed().unwrap());
    assert!(*revisions.borrow_and_update() > first);
    fs::write(&path, policy("p", "PERMISSIVE")).unwrap();
    until(&feed, "written in place", |world| mode(world) == MtlsMode::Permissive);
    let temporary = dir.path().join(".a.yaml.tmp");
    fs::write(&temporary, policy("p", "STRICT")).unwrap();
    fs::rename(&temporary, &path).unwrap();
    until(&feed, "renamed over", |world| mode(world) == MtlsMode::Strict);
    fs::remove_file(&path).unwrap();
    until(&feed, "removed", |world| mode(world) == MtlsMode::Permissive);
    assert!(feed.world().problems.is_empty());
}

#[test]
fn an_idle_folder_makes_no_revisions() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), policy("p", "BAD")).unwrap();
    let feed = start(dir.path());
    let revisions = feed.subscribe();
    thread::sleep(Duration::from_millis(1_500));
    // A write that changes nothing is none either.
    fs::write(dir.path().join("a.yaml"), policy("p", "BAD")).unwrap();
    thread::sleep(Duration::from_millis(700));
    assert!(!revisions.has_changed().unwrap());
}

#[test]
fn a_half_written_file_changes_nothing() {
    use std::io::Write;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, policy("p", "STRICT") + &pod("a", "10.0.0.1")).unwrap();
    let feed = start(dir.path());
    fs::write(&path, policy("p", "PERMISSIVE") + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, na")
        .unwrap();
    let world = until(&feed, "problem", |world| !world.problems.is_empty());
    assert!(mode(&world) == MtlsMode::Strict && has(&world.mesh, "10.0.0.1"));
    let problem = &problems(&world)[0];
    assert!(problem.starts_with(&format!("{}: is not valid YAML: ", path.display())), "{problem}");
    assert!(problem.ends_with("(what it held before stays in force)"), "{problem}");
    fs::write(&path, policy("p", "PERMISSIVE")).unwrap();
    until(&feed, "mended", |world| world.problems.is_empty() && mode(world) == MtlsMode::Permissive);

    // Written slowly, as by a program that is busy elsewhere: each part is whole YAML, none is ever taken for the file.
    fs::write(&path, policy("p", "STRICT")).unwrap();
    until(&feed, "strict again", |world| mode(world) == MtlsMode::Strict);
    let mut file = fs::File::create(&path).unwrap();
    for line in policy("p", "STRICT").lines() {
        let written = Instant::now();
        writeln!(file, "{line}").unwrap();
        thread::sleep(Duration::from_millis(20));
        let mode = mode(&feed.world());
        if written.elapsed() >= QUIET {
            // This machine is too busy to tell a slow writer from a finished one.
            return;
        }
        assert_eq!(mode, MtlsMode::Strict);
    }
    drop(file);
    thread::sleep(Duration::from_millis(600));
    assert!(mode(&feed.world()) == MtlsMode::Strict && feed.world().problems.is_empty());
}

/// Everything else that may stand in a folder, beside a good file and in place of one.
#[test]
fn things_that_are_no_manifests() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("good.yaml"), policy("p", "STRICT")).unwrap();
    fs::write(at("turns.yaml"), pod("t", "10.0.0.9")).unwrap();
    mkfifo(&at("fifo.yaml"), Mode::S_IRWXU).unwrap();
    symlink("/dev/zero", at("zero.yaml")).unwrap();
    symlink(at("self.yaml"), at("self.yaml")).unwrap();
    symlink(at("nowhere"), at("dangling.yaml")).unwrap();
    fs::create_dir(at("dir.yaml")).unwrap();
    fs::write(at("large.yaml"), "a: b\n".repeat(1 << 20)).unwrap();
    fs::write(at("latin1.yaml"), b"a: \xe4\n").unwrap();
    let listener = std::os::unix::net::UnixListener::bind(at("socket.yaml")).unwrap();
    let before = Instant::now();
    let feed = start(dir.path());
    assert!(before.elapsed() < SOON, "something blocked");
    let world = feed.world();
    assert!(mode(&world) == MtlsMode::Strict && has(&world.mesh, "10.0.0.9"));
    let problem_at = |name: &str, what: &str| format!("{}: {what}", at(name).display());
    // Of each that follows it is said first that it may hold policies.
    assert_eq!(
        problems(&world)[8..],
        [
            problem_at("dangling.yaml", "is a link to nothing"),
            problem_at("dir.yaml", "is a directory, not a file"),
            problem_at("fifo.yaml", "is a FIFO, not a file"),
            problem_at("large.yaml", "is larger than 4 MiB; split it"),
            problem_at("latin1.yaml", "is not UTF-8 text: bad byte at offset 3"),
            problem_at("self.yaml", "is a link that leads back to itself"),
            problem_at("socket.yaml", "is a socket, not a file"),
            problem_at("zero.yaml", "is a device, not a file"),
        ]
    );
    drop(listener);
    // A good file that turns into such a thing keeps what it held.
    mkfifo(&at(".fifo"), Mode::S_IRWXU).unwrap();
    fs::rename(at(".fifo"), at("turns.yaml")).unwrap();
    let turned = problem_at("turns.yaml", "is a FIFO, not a file (what it held before stays in force)");
    let world = until(&feed, "FIFO in place", |world| problems(world).contains(&turned));
    assert!(world.problems.len() == 17 && has(&world.mesh, "10.0.0.9"));
}

#[test]
fn a_file_too_large_keeps_what_it_held() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, policy("p", "STRICT")).unwrap();
    let feed = start(dir.path());
    fs::write(&path, policy("p", "PERMISSIVE") + &"# \n".repeat(5 << 20)).unwrap();
    let world = until(&feed, "problem", |world| !world.problems.is_empty());
    assert_eq!(mode(&world), MtlsMode::Strict);
    assert!(
        problems(&world)[0].ends_with("is larger than 4 MiB; split it (what it held before stays in force)")
    );
}

#[test]
fn invalid_objects_and_duplicates_name_file_object_and_field() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let origin = |name: &str| Origin::file(&at(name));
    fs::write(at("a.yaml"), policy("p", "STRICT") + &policy("q", "LOOSE") + &pod("a", "10.0.0.1")).unwrap();
    fs::write(at("b.yaml"), policy("p", "PERMISSIVE") + &pod("b", "[10.0.0.2]")).unwrap();
    let feed = start(dir.path());
    let world = feed.world();
    assert!(mode(&world) == MtlsMode::Strict && has(&world.mesh, "10.0.0.1"));
    let fields: Vec<_> = world
        .problems
        .iter()
        .map(|problem| {
            (problem.origin.clone(), problem.object.as_deref().unwrap(), problem.field.as_deref().unwrap())
        })
        .collect();
    assert_eq!(
        fields,
        [
            (origin("a.yaml"), "PeerAuthentication shop/q", "spec.mtls.mode"),
            (origin("b.yaml"), "Pod shop/b", "status.podIP"),
            (origin("b.yaml"), "PeerAuthentication shop/p", "metadata.name"),
        ]
    );
    assert!(problems(&world)[2].contains(&*at("a.yaml").display().to_string()));
}

#[test]
fn a_config_map_mount_is_followed() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (version, mode) in [("..1", "STRICT"), ("..2", "PERMISSIVE")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("a.yaml"), policy("p", mode)).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let feed = start(dir.path());
    assert_eq!(mode(&feed.world()), MtlsMode::Strict);
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    until(&feed, "swapped", |world| mode(world) == MtlsMode::Permissive);
}

#[test]
fn a_link_to_a_file_elsewhere_is_polled() {
    let (dir, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let target = elsewhere.path().join("a.yaml");
    fs::write(&target, policy("p", "STRICT")).unwrap();
    symlink(&target, dir.path().join("a.yaml")).unwrap();
    let feed = start(dir.path());
    assert_eq!(mode(&feed.world()), MtlsMode::Strict);
    fs::write(&target, policy("p", "PERMISSIVE")).unwrap();
    until(&feed, "changed behind the link", |world| mode(world) == MtlsMode::Permissive);
}

#[test]
fn the_folder_may_go_and_come_back() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), policy("p", "STRICT")).unwrap();
    let feed = start(&dir);
    fs::rename(&dir, parent.path().join("away")).unwrap();
    let world = until(&feed, "folder gone", |world| !world.problems.is_empty());
    assert_eq!(mode(&world), MtlsMode::Strict);
    assert!(problems(&world)[0].starts_with(&format!("{}: cannot be read: ", dir.display())));
    fs::create_dir(&dir).unwrap();
    until(&feed, "empty folder back", |world| {
        world.problems.is_empty() && mode(world) == MtlsMode::Permissive
    });
    fs::write(dir.join("b.yaml"), policy("p", "STRICT")).unwrap();
    until(&feed, "watched again", |world| mode(world) == MtlsMode::Strict);
}

/// A folder and its ledger without the thread that watches.
struct Bench {
    folder: Folder,
    feed: Feed,
}

impl Bench {
    fn new(dir: &Path) -> Self {
        Self {
            folder: Folder::new(dir.to_owned(), Settings::default()),
            feed: Feed::new(Settings::default()),
        }
    }

    fn scan(&mut self) -> Arc<World> {
        self.feed.shared.update(|ledger| self.folder.scan(ledger));
        self.feed.world()
    }
}

#[test]
fn changes_are_seen_without_inotify() {
    let dir = TempDir::new().unwrap();
    let mut bench = Bench::new(dir.path());
    bench.scan();
    let path = dir.path().join("a.yaml");
    fs::write(&path, policy("p", "STRICT")).unwrap();
    let world = bench.scan();
    assert!(bench.folder.unsettled && world.policies.is_empty());
    thread::sleep(QUIET * 2);
    let world = bench.scan();
    assert_eq!(mode(&world), MtlsMode::Strict);
    assert!(!bench.folder.unsettled && Arc::ptr_eq(&world, &bench.scan()));
    // The same size and the same time of modification: what nobody can set shows the change.
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, policy("p", "STRIKT")).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    thread::sleep(QUIET * 2);
    assert_eq!(bench.scan().problems.len(), 1);
}

#[test]
fn too_many_files_lose_nothing() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("z.yaml"), policy("p", "STRICT")).unwrap();
    let mut bench = Bench::new(dir.path());
    bench.scan();
    for n in 0..MAX_FILES {
        fs::write(dir.path().join(format!("a{n}.yaml")), "").unwrap();
    }
    let world = bench.scan();
    assert_eq!(mode(&world), MtlsMode::Strict);
    assert!(problems(&world)[0].contains("holds more than 10000 manifests"), "{:?}", problems(&world));
}

#[test]
fn an_address_that_the_cni_gave_counts_until_the_object_has_its_own() {
    let dir = TempDir::new().unwrap();
    let feed = start(dir.path());
    feed.assign_addresses("shop/a", &["10.0.0.7".parse().unwrap()]);
    fs::write(dir.path().join("a.yaml"), pod("a", "''")).unwrap();
    until(&feed, "placed before the object came", |world| has(&world.mesh, "10.0.0.7"));
    feed.assign_addresses("shop/a", &["::ffff:10.0.0.8".parse().unwrap()]);
    assert!(has(&feed.world().mesh, "10.0.0.8") && !has(&feed.world().mesh, "10.0.0.7"), "not at once");
    fs::write(dir.path().join("a.yaml"), pod("a", "10.0.0.9")).unwrap();
    until(&feed, "its own", |world| has(&world.mesh, "10.0.0.9") && !has(&world.mesh, "10.0.0.8"));
    fs::write(dir.path().join("a.yaml"), pod("a", "''")).unwrap();
    until(&feed, "forgotten", |world| !has(&world.mesh, "10.0.0.9") && !has(&world.mesh, "10.0.0.8"));
}

#[test]
fn a_file_without_permission_is_reported() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, policy("p", "STRICT")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
    let world = start(dir.path()).world();
    // Root reads it all the same.
    let root = nix::unistd::geteuid().is_root();
    // Else it may be anything.
    assert_eq!((world.problems.is_empty(), mode(&world)), (root, MtlsMode::Strict));
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let dir = TempDir::new().unwrap();
    let feed = start(dir.path());
    let mut revisions = feed.subscribe();
    drop(feed);
    let start = Instant::now();
    while revisions.has_changed().is_ok() {
        revisions.mark_unchanged();
        assert!(start.elapsed() < SOON, "still watching");
        thread::sleep(Duration::from_millis(10));
    }
}
