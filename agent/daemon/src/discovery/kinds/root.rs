//! Policies that look as if they were for the whole mesh, and are for one namespace.

use ambit_core::{discovery::Settings, model::ObjectName};

/// Namespaces that are the root namespace of a mesh by default: Istio's, and ours.
const USUAL_ROOTS: [&str; 2] = ["istio-system", "ambit-system"];

/// What is to be told of an object without a selector in a namespace that usually speaks for the whole mesh, and here does not.
pub(super) fn not_mesh_wide(name: &ObjectName, settings: &Settings) -> Option<String> {
    let (namespace, root) = (&name.namespace, &settings.root_namespace);
    (USUAL_ROOTS.contains(&&**namespace) && namespace != root).then(|| {
        format!(
            "it is for the pods of {namespace} and no others: the root namespace of this mesh is {root}. For the whole mesh put it \
             there, or make {namespace} the root namespace (--root-namespace, in the chart rootNamespace)"
        )
    })
}
