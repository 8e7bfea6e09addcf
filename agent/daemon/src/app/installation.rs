//! Keeps the CNI plugin installed on the node while the agent runs, and what it has to know when no agent does.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambit_core::discovery::Settings;
use tokio::{task::JoinSet, time::timeout};

use super::source::mesh_settings;
use crate::{
    cni::{Account, CniError, Installed, Installer, Repairs, State, follow_credentials},
    config::{AgentConfig, CniDirs, SourceConfig},
    discovery::Feed,
    telemetry::Telemetry,
};

/// Installs the plugin if the configuration says so, and keeps it in order until the value returned is dropped.
pub(super) fn keep(config: &AgentConfig, telemetry: &Telemetry) -> Result<Option<Installed>, CniError> {
    let Some(CniDirs { bin, conf }) = &config.cni else { return Ok(None) };
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let agent = format!("{}-{}-{started:x}", config.node, std::process::id());
    let installer = Installer::claim(bin, conf, &config.run_dir, agent)?;
    let (telemetry, before) = (telemetry.clone(), Mutex::new(Before::default()));
    let report = move |look: Result<Repairs, CniError>| {
        if let Ok(mut before) = before.lock() {
            before.report(look, &telemetry);
        }
    };
    installer.follow(report).map(Some)
}

/// Keeps the plugin informed by tasks in `following`.
pub(super) fn inform(config: &AgentConfig, feed: &Feed, following: &mut JoinSet<()>) {
    following.spawn(follow_state(feed.clone(), mesh_settings(config), state_dir(config)));
    following.spawn(follow_credentials(account(config), state_dir(config)));
}

/// Keeps the state that the plugin decides by without an agent equal to the world, in the folder `dir`.
async fn follow_state(feed: Feed, settings: Settings, dir: PathBuf) {
    /// What failed is tried again after this.
    const AGAIN: Duration = Duration::from_secs(10);
    let mut revisions = feed.subscribe();
    let mut written = None;
    feed.synced().await;
    loop {
        revisions.borrow_and_update();
        let world = feed.world();
        let namespaces: BTreeSet<String> =
            world.mesh.namespaces_opted_in().map(ToString::to_string).collect();
        if written.as_ref() != Some(&namespaces) {
            match State::new(&settings, namespaces.iter().cloned()).write(&dir) {
                Ok(()) => written = Some(namespaces),
                Err(error) => tracing::error!(%error, "the CNI plugin will not know which namespaces opt in"),
            }
        }
        let changed = async {
            if written.is_some() { revisions.changed().await.is_ok() } else { std::future::pending().await }
        };
        if !timeout(AGAIN, changed).await.unwrap_or(true) {
            return;
        }
    }
}

/// Where what the plugin decides by without an agent is kept: beside the network configuration it outlives a reboot, after
/// which pods may start before the agent.
fn state_dir(config: &AgentConfig) -> PathBuf {
    config.cni.as_ref().map_or_else(|| config.run_dir.clone(), |dirs| dirs.conf.clone())
}

/// As whom the plugin asks the API while there is no agent; as nobody without a cluster.
fn account(config: &AgentConfig) -> Option<Account> {
    let SourceConfig::Cluster { kubeconfig } = &config.source else { return None };
    let (namespace, name) = config.cni_account.clone()?;
    Some(Account { namespace, name, kubeconfig: kubeconfig.clone() })
}

/// What was told of the last look, so that nothing is told twice.
#[derive(Default)]
struct Before {
    installed: bool,
    error: Option<String>,
}

impl Before {
    fn report(&mut self, look: Result<Repairs, CniError>, telemetry: &Telemetry) {
        telemetry.cni_installed(look.is_ok());
        match look {
            Ok(repairs) => {
                if !self.installed {
                    tracing::info!("the CNI plugin is installed");
                } else {
                    for (what, repaired) in [("binary", repairs.binary), ("network", repairs.network)] {
                        if repaired {
                            tracing::warn!(
                                what,
                                "the CNI plugin's installation was changed by others and has been repaired"
                            );
                            telemetry.cni_repaired(what);
                        }
                    }
                }
                (self.installed, self.error) = (true, None);
            }
            Err(error) => {
                let text = error.to_string();
                if self.error.as_ref() != Some(&text) {
                    tracing::error!(
                        error = text,
                        "the CNI plugin is not installed: pods start before they are captured"
                    );
                    self.error = Some(text);
                }
            }
        }
    }
}
