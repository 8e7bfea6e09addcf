//! What the cluster and ambit in it have said, for messages and for whoever looks into a failure.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{SYSTEM, Site};
use crate::process;

/// kubectl's words for what every container of ambit has logged.
const LOGS: [&str; 8] = [
    "logs",
    "-n",
    SYSTEM,
    "-l",
    "app.kubernetes.io/instance=ambit",
    "--prefix",
    "--all-containers",
    "--ignore-errors",
];
impl Site {
    /// Keeps the logs of the cluster and of ambit in `folder`.
    pub(in crate::kube_suite) fn keep_logs(&self, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(self.cluster.folder())?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
        }
        let all = ["get", "pods,events,daemonsets,deployments", "-A", "-o", "wide"];
        let mut told = self.said(&all);
        for argument in ["--previous=false", "--previous=true"] {
            let logs = [LOGS.as_slice(), &["--tail=-1", argument]].concat();
            told += &self.said(&logs);
        }
        fs::write(folder.join("cluster.txt"), told)?;
        Ok(folder.to_owned())
    }

    /// States and last words of a namespace's pods, for messages.
    pub(super) fn told_by_pods(&self, namespace: &str) -> String {
        let pods = self.said(&["get", "pods", "-n", namespace, "-o", "wide"]);
        let events = self.said(&["events", "-n", namespace, "--types=Warning"]);
        let logs = self.said(&[LOGS.as_slice(), &["--tail=15"]].concat());
        format!("{pods}\n{}\n{}", process::tail(&events), process::tail(&logs))
    }

    /// All that kubectl says, or why it could not be asked.
    fn said(&self, arguments: &[&str]) -> String {
        let asked = self.cluster.api.try_kubectl(arguments, "");
        asked.map_or_else(|error| format!("{error:#}"), |said| said.stdout + &said.stderr)
    }
}
