//! What plugin and agent say to each other: one JSON line each way on a UNIX stream socket. Fields are only ever added, so that
//! plugin and agent of neighbouring versions understand each other.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// The plugin's name: of its file and in network configurations.
pub(crate) const BINARY: &str = "ambit-cni";
/// The longest line, in bytes. A GC request names every attachment of the node.
pub(super) const MAX_LINE: u64 = 256 * 1024;
/// How long the agent waits for the world to know a pod whose namespace opts in, and for its enrolment.
pub(crate) const ENROLMENT_WAIT: Duration = Duration::from_secs(10);
/// How long the agent may take for an answer: enrolment and the first certificate.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(17);

/// Where the agent with this run directory listens for the plugin.
pub(super) fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("cni.sock")
}

/// Reads a line, its end included, as the other side sent it: a [`Request`] or an [`Answer`].
pub(crate) fn read<'de, T: Deserialize<'de>>(line: &'de [u8]) -> io::Result<T> {
    if line.last() != Some(&b'\n') {
        return Err(io::Error::other("the line is cut off or too long"));
    }
    Ok(serde_json::from_slice(line)?)
}

/// What a plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// What it was called for.
    pub(crate) command: Command,
    /// The container runtime's name for the pod's sandbox.
    #[serde(default)]
    pub(crate) container: String,
    /// The pod; none for what concerns no single one.
    #[serde(default)]
    pub(crate) pod: Option<PodRef>,
    /// The pod's network namespace; none where it is not needed, or gone.
    #[serde(default)]
    pub(crate) netns: Option<NetnsRef>,
    /// The addresses that the plugins before this one gave to the pod.
    #[serde(default)]
    pub(crate) ips: Vec<IpAddr>,
    /// GC: the sandboxes that are there.
    #[serde(default)]
    pub(crate) valid: Vec<String>,
}

/// A network namespace that the plugin holds open while it waits for the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetnsRef {
    /// Where the plugin found it (`CNI_NETNS`). The agent may have nothing there, or something else.
    pub(crate) path: String,
    /// The plugin's descriptor.
    pub(crate) fd: i32,
    /// Its device and inode.
    pub(crate) inode: (u64, u64),
}

/// What concerns the agent of the commands of CNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Command {
    /// A pod is about to start.
    Add,
    /// A pod's sandbox goes.
    Del,
    /// Is the pod as it should be?
    Check,
    /// Forget what is not in the list.
    Gc,
    /// Is anybody there?
    Status,
}

impl Command {
    /// As CNI and metrics write it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

/// A pod as the container runtime knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub(crate) namespace: String,
    /// `K8S_POD_NAME`.
    pub(crate) name: String,
    /// `K8S_POD_UID`, which older runtimes do not tell.
    #[serde(default)]
    pub(crate) uid: Option<String>,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// How it went.
    pub(crate) outcome: Outcome,
    /// A sentence for an operator where it did not go well.
    #[serde(default)]
    pub(crate) message: String,
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// The pod is in the mesh and its traffic captured.
    Enrolled,
    /// The pod is not to be in the mesh; or there was nothing to decide.
    Passed,
    /// The agent does not know the pod, or cannot know yet: the plugin has to find out by itself.
    Unknown,
    /// The pod is to be in the mesh and is not.
    Failed,
}

impl Outcome {
    /// As metrics write it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Passed => "passed",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
        }
    }
}

impl Answer {
    /// An answer that needs no words.
    pub(crate) fn plain(outcome: Outcome) -> Self {
        Self { outcome, message: String::new() }
    }

    /// An answer that needs some.
    pub(crate) fn saying(outcome: Outcome, message: impl Into<String>) -> Self {
        Self { outcome, message: message.into() }
    }
}
