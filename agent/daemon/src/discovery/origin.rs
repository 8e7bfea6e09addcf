//! Where in a source something stands: what an operator has to look at.

use std::{fmt, path::Path, sync::Arc};

use super::kinds::{Key, Kind};

/// Where something stands in a source. Ordered: of two claims to one name the one of the first origin counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// A file, or the folder itself.
    File(Arc<Path>),
    /// The Kubernetes API as a whole.
    Api,
    /// All objects of one kind in the Kubernetes API.
    Resource(Kind),
    /// The definition of a kind in the Kubernetes API.
    Definition(Kind),
    /// An object in the Kubernetes API, of this cluster or another.
    Object(Key),
    /// Another cluster.
    Cluster(Arc<str>),
}

impl Origin {
    /// A file, or the folder.
    pub(crate) fn file(path: &Path) -> Self {
        Self::File(path.into())
    }

    /// The other cluster that an object is of.
    pub(super) fn cluster(&self) -> Option<&Arc<str>> {
        match self {
            Self::Object(key) => key.name.cluster.as_ref(),
            _ => None,
        }
    }
}

/// A path, or `kubernetes` with the resource where no object is named, or another cluster.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Api => f.write_str("kubernetes API"),
            Self::Resource(kind) => write!(f, "kubernetes {}", kind.row().plural),
            Self::Definition(kind) => {
                let row = kind.row();
                write!(f, "kubernetes CustomResourceDefinition {}.{}", row.plural, row.group)
            }
            Self::Object(_) => match self.cluster() {
                Some(cluster) => write!(f, "cluster {cluster}"),
                None => f.write_str("kubernetes"),
            },
            Self::Cluster(cluster) => write!(f, "cluster {cluster}"),
        }
    }
}
