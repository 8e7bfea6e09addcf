use std::time::Instant;

use super::*;

const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"net\",\n  \"plugins\": [\n    {\"type\": \"bridge\"}\n  ]\n}\n";
const SINGLE: &str = "{\"cniVersion\": \"0.4.0\", \"name\": \"net\", \"type\": \"bridge\"}\n";

struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn with(files: &[(&str, &str)]) -> Self {
        let node = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(node.conf_dir()).unwrap();
        for (name, text) in files {
            node.write(name, text);
        }
        node
    }

    fn conf_dir(&self) -> PathBuf {
        self.dir.path().join("net.d")
    }

    fn bin_dir(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.conf_dir().join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.conf_dir().join(name)).unwrap()
    }

    fn agent(&self, name: &str) -> Installer {
        Installer::claim(&self.bin_dir(), &self.conf_dir(), Path::new("/run/ambit"), name.to_owned()).unwrap()
    }

    /// The files of the configuration folder that a runtime would look at, and those kept aside.
    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.conf_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with("ambit-cni.")).collect();
        names.sort();
        names
    }

    fn uninstall(&self) -> Vec<String> {
        uninstall(&self.bin_dir(), &self.conf_dir()).unwrap()
    }
}

const BOTH: Repairs = Repairs { binary: true, network: true };
const NONE: Repairs = Repairs { binary: false, network: false };

#[test]
fn the_first_list_is_extended_and_uninstalling_undoes_it() {
    let node = Node::with(&[("10-net.conflist", LIST), ("20-other.conflist", LIST), ("README", "x")]);
    let mut agent = node.agent("a");
    assert_eq!(agent.look().unwrap(), BOTH);
    assert_eq!(agent.look().unwrap(), NONE);
    assert_eq!(node.agent("b").look().unwrap(), NONE, "a second agent finds all in order");
    assert!(conflist::has_entry(&node.read("10-net.conflist")));
    assert_eq!(node.read("20-other.conflist"), LIST);
    let binary = node.bin_dir().join(BINARY);
    assert!(same_content(Path::new("/proc/self/exe"), &binary).unwrap() && is_executable(&binary));
    assert_eq!(node.uninstall().len(), 2);
    assert_eq!((node.read("10-net.conflist"), node.files().len()), (LIST.to_owned(), 3));
    assert!(!binary.exists() && fs::read_dir(node.conf_dir()).unwrap().count() == 3);
    assert!(node.uninstall().is_empty(), "nothing is left");
}

#[test]
fn a_single_configuration_becomes_a_list_and_itself_again() {
    for name in ["10-net.conf", "10-net.json"] {
        let node = Node::with(&[(name, SINGLE)]);
        let mut agent = node.agent("a");
        assert_eq!(agent.look().unwrap(), BOTH);
        assert_eq!(agent.look().unwrap(), NONE);
        let mut expected = ["10-net.conflist".to_owned(), format!("{name}.{SAVED}")];
        expected.sort();
        assert_eq!(node.files(), expected);
        assert!(conflist::has_entry(&node.read("10-net.conflist")));
        // The other plugin writes its configuration again: that one counts.
        let newer = SINGLE.replace("bridge", "ptp");
        node.write(name, &newer);
        assert_eq!(agent.look().unwrap(), Repairs { binary: false, network: true });
        assert!(node.read("10-net.conflist").contains("ptp"));
        node.uninstall();
        assert_eq!((node.files(), node.read(name)), (vec![name.to_owned()], newer));
    }
}

#[test]
fn what_others_overwrite_or_remove_is_put_in_again() {
    let node = Node::with(&[("10-net.conflist", LIST)]);
    let mut agent = node.agent("a");
    agent.look().unwrap();
    node.write("10-net.conflist", LIST);
    assert_eq!(agent.look().unwrap(), Repairs { binary: false, network: true });
    fs::write(node.bin_dir().join(BINARY), "#!/bin/sh\n").unwrap();
    assert_eq!(agent.look().unwrap(), Repairs { binary: true, network: false });
    fs::remove_file(node.bin_dir().join(BINARY)).unwrap();
    assert_eq!(agent.look().unwrap(), Repairs { binary: true, network: false });
    // Another network comes first now, and the entry moves.
    node.write("05-new.conflist", LIST);
    assert_eq!(agent.look().unwrap(), Repairs { binary: false, network: true });
    assert!(conflist::has_entry(&node.read("05-new.conflist")));
    assert_eq!(node.read("10-net.conflist"), LIST);
}

#[test]
fn what_cannot_be_understood_is_left_alone() {
    for (name, text, expected) in [
        ("10-net.conflist", "{ \"plugins\": [", "no JSON"),
        ("10-net.conflist", "{ \"plugins\": [] }", "empty"),
        ("10-net.conf", "{ \"name\": \"n\" }", "no plugin as its type"),
    ] {
        let node = Node::with(&[(name, text), ("20-good.conflist", LIST)]);
        let error = node.agent("a").look().unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("left alone"), "{error}");
        assert_eq!((node.read(name), node.read("20-good.conflist")), (text.to_owned(), LIST.to_owned()));
    }
    let error = Node::with(&[]).agent("a").look().unwrap_err().to_string();
    assert!(error.contains("install a CNI network plugin first"), "{error}");
    let beside = Node::with(&[("10-net.conf", SINGLE), ("10-net.conflist", LIST)]);
    assert!(beside.agent("a").look().unwrap_err().to_string().contains("stands beside it"));
}

#[test]
fn of_two_agents_the_later_one_keeps_the_installation() {
    let node = Node::with(&[("10-net.conflist", LIST)]);
    let mut old = node.agent("old");
    old.look().unwrap();
    let mut new = node.agent("new");
    node.write("10-net.conflist", LIST);
    assert_eq!(old.look().unwrap(), NONE, "the old one leaves it to the new one");
    assert_eq!(new.look().unwrap(), Repairs { binary: false, network: true });
    // Even where the claim itself gets lost, both do not go on writing for ever.
    fs::remove_file(node.conf_dir().join(CLAIM)).unwrap();
    old.look().unwrap();
    new.look().unwrap();
    assert_eq!(Claim::read(&node.conf_dir()), Some(new.claim.clone()));
    assert_eq!(old.look().unwrap(), NONE);
    assert_eq!(Claim::read(&node.conf_dir()), Some(new.claim.clone()));
}

#[test]
fn following_repairs_soon_and_ends_when_told() {
    let node = Node::with(&[("10-net.conflist", LIST)]);
    let following = node.agent("a").follow(|_| {}).unwrap();
    for _ in 0..3 {
        let start = Instant::now();
        while !conflist::has_entry(&node.read("10-net.conflist")) {
            assert!(start.elapsed() < Duration::from_secs(30), "not repaired");
            thread::sleep(Duration::from_millis(5));
        }
        node.write("10-net.conflist", LIST);
    }
    drop(following);
    node.write("10-net.conflist", LIST);
    thread::sleep(QUIET);
    assert_eq!(node.read("10-net.conflist"), LIST);
}
