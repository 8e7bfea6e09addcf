//! What outlives the agent, under the bpf file system: `ambit/<node>/maps-<layout>[-<MAP>-<entries>]/<MAP>`, `ambit/<node>/links/<program>`,
//! and `ambit/<node>/pods/<uid>_<cookie>`, the link of each pod's inbound hook.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::programs::links::{FdLink, PinnedLink};

use super::{CaptureError, maps};

/// What the names of folders with maps begin with.
const MAPS: &[u8] = b"maps";

/// Where a node's pins are.
pub(super) fn node_dir(bpf_root: &Path, node: &str) -> PathBuf {
    // The bpf file system allows no dots in names.
    bpf_root.join("ambit").join(node.replace(['.', '/'], "_"))
}

/// What a pod's pin tells.
pub(super) struct PodPin {
    /// Where it is.
    pub(super) path: PathBuf,
    /// The pod's UID as [`pin_name`] writes it.
    pub(super) uid: String,
    /// Cookie of the network namespace that it had.
    pub(super) cookie: u64,
}

/// The pods that agents of the node at `node_dir` have enrolled.
pub(super) fn pinned_pods(node_dir: &Path) -> Vec<PodPin> {
    let pods = fs::read_dir(node_dir.join("pods")).into_iter().flatten().flatten();
    pods.filter_map(|pin| {
        let name = pin.file_name().to_string_lossy().into_owned();
        let (uid, cookie) = name.rsplit_once('_')?;
        Some(PodPin { path: pin.path(), uid: uid.to_owned(), cookie: cookie.parse().ok()? })
    })
    .collect()
}

/// Removes the pins of pods that are not in `expected`, and answers with them; with none expected, everything of the node
/// goes.
pub(super) fn sweep(node_dir: &Path, maps_dir: &Path, expected: &HashSet<Arc<str>>) -> Vec<PodPin> {
    let expected: HashSet<String> = expected.iter().map(|uid| pin_name(uid)).collect();
    let mut gone = pinned_pods(node_dir);
    gone.retain(|pin| !expected.contains(&pin.uid));
    for pin in &gone {
        maps::remove_pinned_pod(maps_dir, pin.cookie);
        unpin(&pin.path);
    }
    if expected.is_empty() {
        remove_node(node_dir);
    }
    gone
}

/// The directories of `node`, or of all nodes.
pub(super) fn node_dirs(bpf_root: &Path, node: Option<&str>) -> io::Result<Vec<PathBuf>> {
    match (node, fs::read_dir(bpf_root.join("ambit"))) {
        (Some(node), _) => Ok(vec![node_dir(bpf_root, node)]),
        (None, Ok(nodes)) => Ok(nodes.flatten().map(|node| node.path()).collect()),
        (None, Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        (None, Err(error)) => Err(error),
    }
}

/// Removes a node's pins, the ones that send traffic to the agent first.
pub(super) fn remove_node(node_dir: &Path) -> Vec<String> {
    let mut removed = Vec::new();
    let maps = fs::read_dir(node_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let maps =
        maps.filter(|dir| dir.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(MAPS)));
    let dirs: Vec<PathBuf> =
        ["links", "pods"].map(|dir| node_dir.join(dir)).into_iter().chain(maps).collect();
    for dir in dirs {
        for pin in fs::read_dir(&dir).into_iter().flatten().flatten() {
            unpin(&pin.path());
            removed.push(pin.path().display().to_string());
        }
        let _: io::Result<()> = fs::remove_dir(&dir);
    }
    let _: io::Result<()> = fs::remove_dir(node_dir);
    if let Some(root) = node_dir.parent() {
        // Fails while another node's pins are in it.
        let _: io::Result<()> = fs::remove_dir(root);
    }
    removed
}

/// Pins `link` at `path`, in the place of what may be there: for a moment both are attached, never neither.
pub(super) fn pin(link: FdLink, path: &Path) -> Result<(), CaptureError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!("{name}-new"));
    unpin(&fresh);
    let pinned: PinnedLink = link.pin(&fresh).map_err(|cause| error(&fresh, &cause))?;
    fs::rename(&fresh, path).map_err(|cause| error(path, &cause))?;
    drop(pinned);
    Ok(())
}

pub(super) fn error(path: &Path, error: &dyn fmt::Display) -> CaptureError {
    CaptureError::Pin { path: path.to_owned(), message: error.to_string() }
}

pub(super) fn unpin(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove an eBPF pin");
        }
        _ => {}
    }
}

/// Where the maps of this layout are, those of `sizes` other than the usual. An agent of another layout, or with other sizes,
/// has maps of its own beside them.
pub(super) fn maps_dir(node_dir: &Path, sizes: &BTreeMap<String, u32>) -> PathBuf {
    let sizes: String = sizes.iter().map(|(map, entries)| format!("-{map}-{entries}")).collect();
    node_dir.join(format!("maps-{}{sizes}", ambit_ebpf_common::LAYOUT))
}

/// Removes the maps that are not `current`: the agent that used them is gone.
pub(super) fn remove_other_maps(node_dir: &Path, current: &Path) {
    for entry in fs::read_dir(node_dir).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(MAPS) && entry.path() != current {
            for pin in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                unpin(&pin.path());
            }
            let _: io::Result<()> = fs::remove_dir(entry.path());
        }
    }
}

pub(super) fn link_path(node_dir: &Path, program: &str) -> PathBuf {
    node_dir.join("links").join(program)
}

pub(super) fn pod_path(node_dir: &Path, uid: &str, cookie: u64) -> PathBuf {
    node_dir.join("pods").join(format!("{}_{cookie}", pin_name(uid)))
}

/// A pod's UID as a file name: the bpf file system allows no dots.
pub(super) fn pin_name(uid: &str) -> String {
    uid.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "-")
}
