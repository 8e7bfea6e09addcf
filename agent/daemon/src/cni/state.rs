//! What the agent leaves for the plugin to know while no agent runs: which namespaces opt in, and by which label.

use std::{collections::BTreeSet, fs, io, path::Path};

use ambit_core::{discovery::Settings, model::Labels};
use serde::{Deserialize, Serialize};

use super::CniError;
use crate::files::{self, ReadError};

const FILE: &str = "ambit-cni.state";
/// The longest file read, in bytes: namespaces in any number that a cluster can have.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The state of opting in, as of the agent's last word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    /// The key of the label that opts in and out.
    pub(crate) label: String,
    /// Its value that opts in.
    pub(crate) enabled: String,
    /// Its value that opts out.
    pub(crate) disabled: String,
    /// The namespaces that opt in.
    pub(crate) namespaces: BTreeSet<String>,
}

impl State {
    /// The state that these settings and namespaces make.
    pub(crate) fn new(settings: &Settings, namespaces: impl IntoIterator<Item = String>) -> Self {
        Self {
            label: settings.label.to_string(),
            enabled: settings.enabled.to_string(),
            disabled: settings.disabled.to_string(),
            namespaces: namespaces.into_iter().collect(),
        }
    }

    /// Writes it into the folder `dir`, in one step for a reader.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), CniError> {
        let path = dir.join(FILE);
        let failed = CniError::file("write", &path);
        match serde_json::to_vec(self) {
            Ok(text) => files::replace(&path, &text, 0o644).map_err(failed),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Reads what an agent wrote into `dir`.
    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let text = files::read(&dir.join(FILE), MAX_FILE).map_err(ReadError::into_problem)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Removes what an agent wrote into `dir`; whether there was anything.
    pub(super) fn remove(dir: &Path) -> bool {
        fs::remove_file(dir.join(FILE)).is_ok()
    }

    /// Whether a pod with these labels opts in.
    pub(super) fn opts_in(&self, namespace: Option<&Labels>, pod: Option<&Labels>) -> bool {
        let settings = Settings {
            label: self.label.as_str().into(),
            enabled: self.enabled.as_str().into(),
            disabled: self.disabled.as_str().into(),
            ..Settings::default()
        };
        settings.opts_in(namespace, pod.unwrap_or(&Labels::new()))
    }
}
