//! Whether the agent ends for good: because the DaemonSet that it belongs to is gone, or the namespace with all that is in it,
//! not because of an upgrade, a drain or a node's end. Only what the API itself said counts; without an answer the node stays
//! closed. And what happens then.

use std::{fmt::Debug, fs, io, path::Path, time::Duration};

use anyhow::Context as _;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Namespace};
use kube::{
    Api, Client, Resource,
    api::ListParams,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{Config, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_stream::StreamExt as _;

use crate::{capture, cni, config::AgentConfig};

/// How long the last question to the API may take: the agent is about to end, and its pods wait.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// The DaemonSet and its namespace as the API tells of them.
pub(super) struct Release {
    name: Option<(String, String)>,
    set_gone: watch::Receiver<bool>,
    namespace_gone: watch::Receiver<bool>,
    /// Dropping it ends the watches.
    _following: JoinSet<()>,
}

impl Release {
    /// Watches the DaemonSet of this namespace and name, and the namespace, from now on. Their removal is seen while the agent
    /// runs, for when the agent is told to end, it may already have lost the right to ask. Of a namespace that is removed, pods
    /// may go before anything else does.
    pub(super) fn follow(name: Option<(String, String)>) -> Self {
        let (tell_set, set_gone) = watch::channel(false);
        let (tell_namespace, namespace_gone) = watch::channel(false);
        let mut following = JoinSet::new();
        if let Some(name) = name.clone() {
            following.spawn(follow(name, tell_set, tell_namespace));
        }
        Self { name, set_gone, namespace_gone, _following: following }
    }

    /// Whether everything must come off this node. Answers within two seconds.
    pub(super) async fn uninstall_wanted(&self) -> bool {
        if *self.set_gone.borrow() || *self.namespace_gone.borrow() {
            return true;
        }
        let Some(name) = &self.name else { return false };
        let unknown = match timeout(LAST_LOOK, is_gone(name)).await {
            Ok(Ok(gone)) => return gone,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API did not answer in time".to_owned(),
        };
        tracing::warn!(
            error = unknown,
            "it is not known whether ambit is being removed; this node's pods stay closed, and `ambit uninstall --all` on the \
             node opens them"
        );
        false
    }
}

/// Takes everything that agents of this node left off it.
pub(super) async fn take_off(config: &AgentConfig) -> anyhow::Result<()> {
    let left = Left {
        node: Some(&config.node),
        bpf_root: &config.bpf_root,
        run_dir: &config.run_dir,
        state_dir: &config.state_dir,
        in_use: false,
        cni: config.cni.as_ref().map(|dirs| (&*dirs.bin, &*dirs.conf)),
    };
    let removed = left.take_off().await?;
    tracing::info!(
        node = config.node,
        items = removed.len(),
        "ambit has been removed from the cluster: taken off this node"
    );
    Ok(())
}

/// What agents leave on a node, and where.
#[derive(Debug)]
pub(crate) struct Left<'a> {
    /// The node whose agents are meant; those of all nodes if `None`.
    pub(crate) node: Option<&'a str>,
    /// The BPF file system.
    pub(crate) bpf_root: &'a Path,
    /// The run directory.
    pub(crate) run_dir: &'a Path,
    /// Where what outlives an agent is kept.
    pub(crate) state_dir: &'a Path,
    /// Whether an agent serves the run directory: it and what is kept then stay.
    pub(crate) in_use: bool,
    /// Where the CNI plugin is, and its network configuration; looked for if `None`.
    pub(crate) cni: Option<(&'a Path, &'a Path)>,
}

impl Left<'_> {
    /// Takes it off: the CNI plugin first, which without an agent would keep new pods waiting, then what is in the kernel, then
    /// the folders. Says what that was. What cannot be taken off keeps nothing else there.
    pub(crate) async fn take_off(&self) -> anyhow::Result<Vec<String>> {
        let plugin = match self.cni {
            Some((bin, conf)) => cni::uninstall(bin, conf),
            None => cni::uninstall_wherever(self.run_dir, self.node),
        };
        let in_the_kernel = capture::uninstall(self.bpf_root, self.node).await;
        let mut removed = plugin.context("the CNI plugin could not be taken off")?;
        removed.extend(
            in_the_kernel.with_context(|| format!("cannot look through {}", self.bpf_root.display()))?,
        );
        if !self.in_use {
            remove_folder(self.run_dir);
            // Others may have a folder of their own in it.
            if self.state_dir != self.run_dir
                && fs::read_dir(self.state_dir).is_ok_and(|all| all.flatten().all(|file| is_ours(&file)))
            {
                remove_folder(self.state_dir);
            }
        }
        Ok(removed)
    }
}

/// Removes a folder of agents, if nothing is in it but what they put there.
fn remove_folder(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten().filter(is_ours) {
        let _: io::Result<()> = fs::remove_file(entry.path());
    }
    let removed = fs::remove_dir(path).or_else(|error| match error.kind() {
        // In a container it is a mount point, and what it is mounted on may be read-only. As the host sees it, neither is so.
        io::ErrorKind::ResourceBusy | io::ErrorKind::ReadOnlyFilesystem => {
            fs::remove_dir(Path::new("/proc/1/root").join(path.strip_prefix("/").unwrap_or(path)))
        }
        _ => Err(error),
    });
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "the folder could not be removed");
    }
}

/// Whether agents made a file. One that is being replaced begins with a dot until it is whole.
fn is_ours(file: &fs::DirEntry) -> bool {
    let ours = |name: &str| name.trim_start_matches('.').starts_with("ambit") || name == "cni.sock";
    file.file_type().is_ok_and(|kind| !kind.is_dir()) && file.file_name().to_str().is_some_and(ours)
}

async fn follow(
    (namespace, name): (String, String),
    tell_set: watch::Sender<bool>,
    tell_namespace: watch::Sender<bool>,
) {
    let client = match Client::try_default().await {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(%error, "no cluster to ask whether ambit is being removed");
            return;
        }
    };
    let sets: Api<PartialObjectMeta<DaemonSet>> = Api::namespaced(client.clone(), &namespace);
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client);
    tokio::join!(follow_one(sets, &name, tell_set), follow_one(namespaces, &namespace, tell_namespace));
}

/// Tells whether the object of that name goes or has gone, for ever.
async fn follow_one<K>(objects: Api<PartialObjectMeta<K>>, name: &str, tell: watch::Sender<bool>)
where
    PartialObjectMeta<K>: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher(objects, Config::default().fields(&format!("metadata.name={name}")));
    let mut events = std::pin::pin!(events.default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if let Some(gone) = verdict(&event) {
                    tell.send_replace(gone);
                }
            }
            Err(error) => tracing::debug!(%error, name, "the release cannot be watched"),
        }
    }
}

/// Whether an event says that the object is gone; `None` if it says nothing of it. That a list lacks it is left to
/// [`is_gone`]: nothing is decided while the agent runs.
fn verdict<K>(event: &Event<PartialObjectMeta<K>>) -> Option<bool> {
    match event {
        Event::Delete(_) => Some(true),
        Event::Apply(object) | Event::InitApply(object) => Some(object.metadata.deletion_timestamp.is_some()),
        Event::Init | Event::InitDone => None,
    }
}

/// Whether the DaemonSet or its namespace is gone, or going. One of the two that says so suffices: with the namespace the right
/// to ask for the other may be gone.
async fn is_gone((namespace, name): &(String, String)) -> Result<bool, kube::Error> {
    let client = Client::try_default().await?;
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let namespaces: Api<Namespace> = Api::all(client);
    let named = ListParams::default().fields(&format!("metadata.name={namespace}"));
    let (set, found) = tokio::join!(sets.get_metadata_opt(name), namespaces.list_metadata(&named));
    let set_gone = set.map(|set| set.is_none_or(|set| set.metadata.deletion_timestamp.is_some()));
    let namespace_gone = found
        .map(|found| found.items.first().is_none_or(|found| found.metadata.deletion_timestamp.is_some()));
    match (set_gone, namespace_gone) {
        (Ok(true), _) | (_, Ok(true)) => Ok(true),
        (Err(error), _) | (_, Err(error)) => Err(error),
        (Ok(false), Ok(false)) => Ok(false),
    }
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
        assert_eq!(verdict::<DaemonSet>(&Event::Init), None);
        assert_eq!(verdict::<DaemonSet>(&Event::InitDone), None);
    }

    #[test]
    fn a_run_directory_goes_unless_somebody_else_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("ambit");
        fs::create_dir(&run_dir).unwrap();
        for name in ["ambit.lock", ".ambit.last.json.ambit-7", "cni.sock", "theirs"] {
            fs::write(run_dir.join(name), "").unwrap();
        }
        remove_folder(&run_dir);
        let left: Vec<_> = fs::read_dir(&run_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["theirs"]);
        fs::remove_file(run_dir.join("theirs")).unwrap();
        remove_folder(&run_dir);
        assert!(!run_dir.exists());
    }

    #[tokio::test]
    async fn an_agent_of_no_daemonset_stays() {
        assert!(!Release::follow(None).uninstall_wanted().await);
    }
}
