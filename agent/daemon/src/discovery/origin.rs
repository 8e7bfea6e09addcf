//! Where an object stands: what an operator is told to look at.

use std::{fmt, path::Path, sync::Arc};

use ambit_core::model::ObjectName;

/// Where something stands in a source. Places are ordered: of two claims to one name the one at the first place counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// A file, or the folder itself.
    File(Arc<Path>),
    /// The Kubernetes API itself, or one of its resources (`pods`).
    Resource(&'static str),
    /// An object in the Kubernetes API, by its resource.
    Object(&'static str, ObjectName),
}

impl Origin {
    /// A file, or the folder.
    pub(crate) fn file(path: &Path) -> Self {
        Self::File(path.into())
    }
}

/// A path, or `kubernetes` with the resource where no object is named.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Resource(resource) => write!(f, "kubernetes {resource}"),
            Self::Object(..) => f.write_str("kubernetes"),
        }
    }
}
