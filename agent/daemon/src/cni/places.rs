//! Where on a node the plugin may be: what the agent wrote down in its run directory, and where distributions have the folders of
//! the CNI. Promises that a folder without a trace of ambit is left untouched.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    CniError,
    install::{is_traced, remove_binary, take_out_of},
};
use crate::files::{self, ReadError};

/// In the run directory.
const FILE: &str = "ambit.cni.json";
const MAX_FILE: u64 = 64 * 1024;

/// Plugins: the usual folder, k3s, GKE, OpenShift, MicroK8s.
const BIN_DIRS: [&str; 6] = [
    "/opt/cni/bin",
    "/var/lib/rancher/k3s/data/cni",
    "/var/lib/rancher/k3s/data/current/bin",
    "/home/kubernetes/bin",
    "/var/lib/cni/bin",
    "/var/snap/microk8s/current/opt/cni/bin",
];
/// Network configurations: the usual folder, k3s, RKE2, OpenShift, MicroK8s.
const CONF_DIRS: [&str; 5] = [
    "/etc/cni/net.d",
    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    "/var/lib/rancher/rke2/agent/etc/cni/net.d",
    "/etc/kubernetes/cni/net.d",
    "/var/snap/microk8s/current/args/cni-network",
];

/// The folders of one installation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Place {
    bin_dir: PathBuf,
    conf_dir: PathBuf,
}

/// Writes down in `run_dir` where the plugin is, for whoever has to take it off without the agent's settings.
pub(super) fn write_down(run_dir: &Path, bin_dir: &Path, conf_dir: &Path) {
    let path = run_dir.join(FILE);
    let place = Place { bin_dir: bin_dir.to_owned(), conf_dir: conf_dir.to_owned() };
    let text = serde_json::to_vec(&place).unwrap_or_default();
    if let Err(error) = files::replace(&path, &text, 0o600) {
        tracing::warn!(
            %error, path = %path.display(),
            "it could not be written down where the CNI plugin is: ambit uninstall will look where it usually is"
        );
    }
}

/// Takes the plugin off the node wherever it is; of an agent of `node` alone, if one is named. Names what was removed.
pub(crate) fn uninstall_wherever(run_dir: &Path, node: Option<&str>) -> Result<Vec<String>, CniError> {
    let noted = noted(run_dir);
    let usual = |folders: &[&str]| folders.iter().map(PathBuf::from).collect::<Vec<_>>();
    take_off(noted, usual(&BIN_DIRS), usual(&CONF_DIRS), node)
}

fn noted(run_dir: &Path) -> Option<Place> {
    let text = files::read(&run_dir.join(FILE), MAX_FILE).map_err(ReadError::into_problem).ok()?;
    serde_json::from_slice(&text).ok()
}

fn take_off(
    noted: Option<Place>,
    bin_dirs: Vec<PathBuf>,
    conf_dirs: Vec<PathBuf>,
    node: Option<&str>,
) -> Result<Vec<String>, CniError> {
    let (noted_bin, noted_conf) = noted.map(|place| (place.bin_dir, place.conf_dir)).unzip();
    let traced = conf_dirs.into_iter().filter(|folder| is_traced(folder, node));
    let conf_dirs: Vec<PathBuf> = noted_conf.into_iter().chain(traced).collect();
    let mut removed = Vec::new();
    for folder in &conf_dirs {
        removed.extend(take_out_of(folder)?);
    }
    // Of another node's installation the binary stays as well.
    let bin_dirs = bin_dirs.into_iter().filter(|_| node.is_none() || !conf_dirs.is_empty());
    for folder in noted_bin.into_iter().chain(bin_dirs) {
        removed.extend(remove_binary(&folder)?);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cni::{BINARY, install::Installer};

    const LIST: &str = "{\"name\": \"net\", \"plugins\": [{\"type\": \"bridge\"}]}\n";

    /// A host with a network configuration, and the plugin installed by the agent of node `worker`.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            for folder in ["run", "bin", "net.d"] {
                fs::create_dir(host.at(folder)).unwrap();
            }
            fs::write(host.at("net.d/10-net.conflist"), LIST).unwrap();
            let agent = "worker-1-77-abc".to_owned();
            let claimed = Installer::claim(&host.at("bin"), &host.at("net.d"), &host.at("run"), agent);
            claimed.unwrap().look().unwrap();
            host
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn take_off(&self, noted: bool, node: Option<&str>) -> Vec<String> {
            let noted = noted.then(|| super::noted(&self.at("run")).unwrap());
            take_off(noted, vec![self.at("bin")], vec![self.at("net.d")], node).unwrap()
        }

        fn is_clean(&self) -> bool {
            let names = |folder| -> Vec<_> {
                fs::read_dir(self.at(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect()
            };
            names("net.d") == ["10-net.conflist"]
                && names("bin").is_empty()
                && fs::read_to_string(self.at("net.d/10-net.conflist")).unwrap() == LIST
        }
    }

    #[test]
    fn the_plugin_is_found_by_the_note_and_without_it() {
        for noted in [true, false] {
            for node in [None, Some("worker-1")] {
                let host = Host::new();
                assert!(!host.is_clean());
                assert_eq!(host.take_off(noted, node).len(), 2, "{noted} {node:?}");
                assert!(host.is_clean(), "{noted} {node:?}");
                assert!(host.take_off(noted, node).is_empty(), "once is enough");
            }
        }
    }

    #[test]
    fn an_installation_of_another_node_stays() {
        let host = Host::new();
        for other in ["worker", "worker-2", "1"] {
            assert!(host.take_off(false, Some(other)).is_empty(), "{other}");
        }
        assert!(host.at("bin").join(BINARY).exists());
    }

    #[test]
    fn a_folder_without_a_trace_is_left_untouched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("10-net.conflist"), LIST).unwrap();
        let before = fs::metadata(dir.path()).unwrap().modified().unwrap();
        let removed = take_off(None, vec![dir.path().to_owned()], vec![dir.path().to_owned()], None);
        assert!(removed.unwrap().is_empty());
        assert_eq!(fs::metadata(dir.path()).unwrap().modified().unwrap(), before);
    }
}
