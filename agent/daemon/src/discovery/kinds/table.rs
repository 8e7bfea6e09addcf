//! The resources of the API that discovery watches.

use ambit_core::model::ObjectName;
use kube::core::ApiResource;

use crate::discovery::Origin;

/// One resource.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) plural: &'static str,
    kind: &'static str,
    /// Empty for the core group.
    group: &'static str,
    version: &'static str,
    /// Need not exist in a cluster, and may come and go.
    pub(super) optional: bool,
}

pub(super) const PODS: &str = "pods";
pub(super) const PEER_AUTHENTICATIONS: &str = "peerauthentications";

/// All of them.
pub(super) const WATCHES: [Watch; 5] = [
    Watch { plural: "namespaces", kind: "Namespace", group: "", version: "v1", optional: false },
    Watch { plural: PODS, kind: "Pod", group: "", version: "v1", optional: false },
    Watch { plural: "services", kind: "Service", group: "", version: "v1", optional: false },
    Watch {
        plural: "endpointslices",
        kind: "EndpointSlice",
        group: "discovery.k8s.io",
        version: "v1",
        optional: false,
    },
    Watch {
        plural: PEER_AUTHENTICATIONS,
        kind: "PeerAuthentication",
        group: "security.istio.io",
        version: "v1",
        optional: true,
    },
];

impl Watch {
    pub(super) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    pub(super) fn resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            api_version: self.api_version(),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// Where the resource as a whole stands.
    pub(super) fn place(&self) -> Origin {
        Origin::Resource(self.plural)
    }

    /// Where one of its objects stands.
    pub(super) fn origin_of(&self, name: ObjectName) -> Origin {
        Origin::Object(self.plural, name)
    }

    /// The rule that an account needs which may not watch it, for a message.
    pub(super) fn rule(&self) -> String {
        format!(
            "the agent's account needs the verbs list and watch on {} (apiGroup {:?}) in a ClusterRole",
            self.plural, self.group
        )
    }
}
