//! Whether the agent ends for good: because the DaemonSet that it belongs to is gone, not because of an upgrade, a drain or
//! a node's end. Only what the API itself said counts; without an answer the node stays closed. And what happens then.

use std::{fs, io, path::Path, time::Duration};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{Config, Event, watcher},
    },
};
use tokio::{sync::watch, task::AbortHandle, time::timeout};
use tokio_stream::StreamExt as _;

use crate::{
    capture, cni,
    config::{AgentConfig, CniDirs},
};

/// How long the last question to the API may take: the agent is about to end, and its pods wait.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// The DaemonSet as the API tells of it.
pub(super) struct Release {
    name: Option<(String, String)>,
    gone: watch::Receiver<bool>,
    following: Option<AbortHandle>,
}

impl Release {
    /// Watches the DaemonSet of this namespace and name from now on. Its removal is seen while the agent runs, for when the
    /// agent is told to end, it may already have lost the right to ask.
    pub(super) fn follow(name: Option<(String, String)>) -> Self {
        let (tell, gone) = watch::channel(false);
        let following = name.clone().map(|name| tokio::spawn(follow(name, tell)).abort_handle());
        Self { name, gone, following }
    }

    /// Whether everything must come off this node. Answers within two seconds.
    pub(super) async fn uninstall_wanted(&self) -> bool {
        if *self.gone.borrow() {
            return true;
        }
        let Some(name) = &self.name else { return false };
        match timeout(LAST_LOOK, is_gone(name)).await {
            Ok(Ok(gone)) => gone,
            Ok(Err(error)) => {
                tracing::warn!(%error, "it is not known whether ambit is being removed; this node's pods stay closed, \
                    and `ambit uninstall --all` opens them");
                false
            }
            Err(_) => {
                tracing::warn!(
                    "the API did not say in time whether ambit is being removed; this node's pods stay \
                    closed, and `ambit uninstall --all` opens them"
                );
                false
            }
        }
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        if let Some(following) = self.following.take() {
            following.abort();
        }
    }
}

/// Takes everything that agents of this node left off it: the CNI plugin first, which without an agent would keep new pods
/// waiting, then what is in the kernel, then the run directory.
pub(super) async fn take_off(config: &AgentConfig) -> anyhow::Result<()> {
    let mut removed = match &config.cni {
        Some(CniDirs { bin, conf }) => cni::uninstall(bin, conf)?,
        None => Vec::new(),
    };
    removed.extend(capture::uninstall(&config.bpf_root, Some(&config.node)).await?);
    remove_run_dir(&config.run_dir);
    tracing::info!(
        node = config.node,
        items = removed.len(),
        "the agents' DaemonSet is gone: taken off this node"
    );
    Ok(())
}

/// Removes the run directory, if nothing is in it but what agents put there.
fn remove_run_dir(path: &Path) {
    // A file that is being replaced begins with a dot until it is whole.
    let ours = |name: &str| name.trim_start_matches('.').starts_with("ambit") || name == "cni.sock";
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(ours) {
            let _: io::Result<()> = fs::remove_file(entry.path());
        }
    }
    let removed = fs::remove_dir(path).or_else(|error| match error.kind() {
        // In a container it is a mount point, and what it is mounted on may be read-only. As the host sees it, neither is so.
        io::ErrorKind::ResourceBusy | io::ErrorKind::ReadOnlyFilesystem => {
            fs::remove_dir(Path::new("/proc/1/root").join(path.strip_prefix("/").unwrap_or(path)))
        }
        _ => Err(error),
    });
    if let Err(error) = removed {
        tracing::warn!(%error, path = %path.display(), "the run directory could not be removed");
    }
}

async fn follow((namespace, name): (String, String), tell: watch::Sender<bool>) {
    let client = match Client::try_default().await {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(%error, "no cluster to ask whether ambit is being removed");
            return;
        }
    };
    let sets: Api<PartialObjectMeta<DaemonSet>> = Api::namespaced(client, &namespace);
    let events = watcher(sets, Config::default().fields(&format!("metadata.name={name}")));
    let mut events = std::pin::pin!(events.default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if let Some(gone) = verdict(&event) {
                    tell.send_replace(gone);
                }
            }
            Err(error) => tracing::debug!(%error, "the DaemonSet cannot be watched"),
        }
    }
}

/// Whether an event says that the DaemonSet is gone; `None` if it says nothing of it. That a list lacks it is left to
/// [`is_gone`]: nothing is decided while the agent runs.
fn verdict(event: &Event<PartialObjectMeta<DaemonSet>>) -> Option<bool> {
    match event {
        Event::Delete(_) => Some(true),
        Event::Apply(set) | Event::InitApply(set) => Some(set.metadata.deletion_timestamp.is_some()),
        Event::Init | Event::InitDone => None,
    }
}

async fn is_gone((namespace, name): &(String, String)) -> Result<bool, kube::Error> {
    let sets: Api<DaemonSet> = Api::namespaced(Client::try_default().await?, namespace);
    let found = sets.get_metadata_opt(name).await?;
    Ok(found.is_none_or(|set| set.metadata.deletion_timestamp.is_some()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;

    fn set(deleted: bool) -> PartialObjectMeta<DaemonSet> {
        let deletion_timestamp = deleted.then_some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        PartialObjectMeta {
            metadata: ObjectMeta { deletion_timestamp, ..ObjectMeta::default() },
            ..PartialObjectMeta::default()
        }
    }

    #[test]
    fn only_its_removal_counts() {
        assert_eq!(verdict(&Event::Apply(set(false))), Some(false));
        assert_eq!(verdict(&Event::InitApply(set(false))), Some(false));
        assert_eq!(verdict(&Event::Apply(set(true))), Some(true));
        assert_eq!(verdict(&Event::Delete(set(false))), Some(true));
        assert_eq!(verdict(&Event::Init), None);
        assert_eq!(verdict(&Event::InitDone), None);
    }

    #[test]
    fn a_run_directory_goes_unless_somebody_else_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("ambit");
        fs::create_dir(&run_dir).unwrap();
        for name in ["ambit.lock", ".ambit.last.json.ambit-7", "cni.sock", "theirs"] {
            fs::write(run_dir.join(name), "").unwrap();
        }
        remove_run_dir(&run_dir);
        let left: Vec<_> = fs::read_dir(&run_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["theirs"]);
        fs::remove_file(run_dir.join("theirs")).unwrap();
        remove_run_dir(&run_dir);
        assert!(!run_dir.exists());
    }

    #[tokio::test]
    async fn an_agent_of_no_daemonset_stays() {
        assert!(!Release::follow(None).uninstall_wanted().await);
    }
}
