//! Where earlier agents enrolled pods: what is pinned outlives them, and names each pod with the cookie of its namespace.
//!
//! Promises that a namespace is the one that the pod was enrolled in, and is still named by the container runtime. Only root can
//! write below the bpf file system, and the kernel gives a cookie to one namespace only.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    CgroupUid,
    netns::Netns,
    pins::{node_dir, pin_name, pinned_pods},
};

/// The pods that are pinned on a node.
#[derive(Clone, Debug)]
pub(crate) struct Pinned {
    node_dir: PathBuf,
}

impl Pinned {
    /// Those that agents of `node` have enrolled.
    pub(crate) fn new(bpf_root: &Path, node: &str) -> Self {
        Self { node_dir: node_dir(bpf_root, node) }
    }

    /// The namespaces of those pods of `wanted` that an agent had enrolled. Only of UIDs as Kubernetes makes them: others may be
    /// one and the same in the name of a pin.
    pub(crate) fn find(&self, wanted: &HashSet<Arc<str>>) -> HashMap<Arc<str>, Netns> {
        let mut cookies: HashMap<String, Vec<u64>> = HashMap::new();
        for pin in pinned_pods(&self.node_dir) {
            cookies.entry(pin.uid).or_default().push(pin.cookie);
        }
        let single = wanted.iter().filter(|uid| CgroupUid::parse(uid).is_some()).filter_map(|uid| {
            match cookies.get(&pin_name(uid)).map(Vec::as_slice) {
                Some([cookie]) => Some((*cookie, uid.clone())),
                // In both a pod may be, or have been.
                _ => None,
            }
        });
        let pods: HashMap<u64, Arc<str>> = single.collect();
        if pods.is_empty() {
            return HashMap::new();
        }
        let named = Netns::named(&pods.keys().copied().collect()).into_iter();
        named.filter_map(|netns| Some((pods.get(&netns.cookie())?.clone(), netns))).collect()
    }
}
