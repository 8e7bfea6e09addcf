//! The table of kinds.

use ambit_core::{
    discovery::{Change as MeshChange, Settings},
    model::ObjectName,
    policy::Change as PolicyChange,
};
use kube::core::ApiResource;
use serde_json::Value;

use super::{
    Change, Valid, authorization_policy, destination_rule, endpoint_slice, fields::FieldError, namespace,
    node, peer_authentication, pod, request_authentication, secret, service, service_entry,
};

/// The group of Istio's security API.
pub(in crate::discovery) const SECURITY_GROUP: &str = "security.istio.io";
/// The group of Istio's networking API.
const NETWORKING_GROUP: &str = "networking.istio.io";

/// A kind that the agent reads. Ordered so that what others depend on comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    PeerAuthentication,
    AuthorizationPolicy,
    RequestAuthentication,
    WorkloadEntry,
    ServiceEntry,
    Secret,
    DestinationRule,
}

/// All that the agent knows of a kind.
pub(in crate::discovery) struct Row {
    pub(in crate::discovery) kind: Kind,
    /// As `kind:` has it in a manifest.
    pub(in crate::discovery) name: &'static str,
    /// As the API's paths have it.
    pub(in crate::discovery) plural: &'static str,
    /// Empty for the core group.
    pub(in crate::discovery) group: &'static str,
    /// The versions that are read in a manifest; the first one is watched.
    pub(in crate::discovery) versions: &'static [&'static str],
    /// Its objects are in namespaces.
    pub(in crate::discovery) namespaced: bool,
    /// A cluster need not have it, and it may come and go there.
    pub(in crate::discovery) optional: bool,
    /// Other groups have kinds of that name, which are none of ours.
    pub(in crate::discovery) name_is_shared: bool,
    /// Reads an object of which the name is known to be good.
    pub(in crate::discovery) read: fn(ObjectName, &Value, &Settings) -> Result<Valid, FieldError>,
    /// What one that cannot be read counts as.
    pub(in crate::discovery) unreadable: Unreadable,
    /// What takes the object of that name out of force.
    pub(in crate::discovery) gone: fn(ObjectName) -> Change,
    /// What the agents write into its objects.
    pub(in crate::discovery) report: Report,
    /// Which of a cluster's objects are read.
    pub(in crate::discovery) origins: Origins,
}

/// Which objects of a kind are read from the Kubernetes API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::discovery) enum Origins {
    /// All.
    All,
    /// Some, one by one: Secrets that a DestinationRule names, and the agent's own node.
    Named,
}

/// What an object counts as that cannot be read. It never widens access.
#[derive(Clone, Copy)]
pub(in crate::discovery) enum Unreadable {
    /// As its last good version; where none is known, as what can be read of it, with this in the place of a field that
    /// cannot. `Null` stands for a field that is absent.
    InPart(fn(&str, &Settings) -> Value),
    /// As the strictest that it may say, whatever it said before; in words, as the end of a sentence on it.
    Strictest(fn(ObjectName, &Value, &FieldError, &Settings) -> Change, &'static str),
}

/// How agents report on the objects of a kind, in the Kubernetes API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::discovery) enum Report {
    /// They do not.
    Nothing,
    /// One of them, by [`ACCEPTED_CONDITION`](crate::discovery::ACCEPTED_CONDITION).
    AcceptedCondition,
}

static TABLE: [Row; 12] = [
    Row {
        kind: Kind::Namespace,
        name: "Namespace",
        plural: "namespaces",
        group: "",
        versions: &["v1"],
        namespaced: false,
        optional: false,
        name_is_shared: false,
        read: namespace::read,
        unreadable: Unreadable::InPart(namespace::in_place_of),
        gone: |ObjectName { name, cluster, .. }| {
            Change::Mesh(match cluster {
                Some(cluster) => MeshChange::RemoteNamespaceGone { cluster, name },
                None => MeshChange::NamespaceGone(name),
            })
        },
        report: Report::Nothing,
        origins: Origins::All,
    },
    Row {
        kind: Kind::Node,
        name: "Node",
        plural: "nodes",
        group: "",
        versions: &["v1"],
        namespaced: false,
        optional: false,
        // Longhorn's.
        name_is_shared: true,
        read: node::read,
        unreadable: Unreadable::InPart(|_, _| Value::Null),
        gone: |name| Change::Mesh(MeshChange::NodeGone(name.name)),
        report: Report::Nothing,
        origins: Origins::Named,
    },
    Row {
        kind: Kind::Pod,
        name: "Pod",
        plural: "pods",
        group: "",
        versions: &["v1"],
        namespaced: true,
        optional: false,
        name_is_shared: false,
        read: pod::read,
        unreadable: Unreadable::InPart(pod::in_place_of),
        gone: |name| Change::Mesh(MeshChange::PodGone(name)),
        report: Report::Nothing,
        origins: Origins::All,
    },
    Row {
        kind: Kind::Service,
        name: "Service",
        plural: "services",
        group: "",
        versions: &["v1"],
        namespaced: true,
        optional: false,
        // Knative's.
        name_is_shared: true,
        read: service::read,
        unreadable: Unreadable::InPart(|_, _| Value::Null),
        gone: |name| Change::Mesh(MeshChange::ServiceGone(name)),
        report: Report::Nothing,
        origins: Origins::All,
    },
    Row {
        kind: Kind::EndpointSlice,
        name: "EndpointSlice",
        plural: "endpointslices",
        group: "discovery.k8s.io",
        versions: &["v1"],
        namespaced: true,
        optional: false,
        name_is_shared: false,
        read: endpoint_slice::read,
        unreadable: Unreadable::InPart(|_, _| Value::Null),
        gone: |name| Change::Mesh(MeshChange::EndpointSliceGone(name)),
        report: Report::Nothing,
        origins: Origins::All,
    },
    Row {
        kind: Kind::PeerAuthentication,
        name: "PeerAuthentication",
        plural: "peerauthentications",
        group: SECURITY_GROUP,
        versions: &["v1", "v1beta1"],
        namespaced: true,
        optional: true,
        name_is_shared: false,
        read: peer_authentication::read,
        unreadable: Unreadable::Strictest(peer_authentication::unreadable, "counts as STRICT"),
        gone: |name| Change::Policies(PolicyChange::PeerAuthenticationGone(name)),
        report: Report::AcceptedCondition,
        origins: Origins::All,
    },
    Row {
        kind: Kind::AuthorizationPolicy,
        name: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        group: SECURITY_GROUP,
        versions: &["v1", "v1beta1"],
        namespaced: true,
        optional: true,
        name_is_shared: false,
        read: authorization_policy::read,
        unreadable: Unreadable::Strictest(
            authorization_policy::unreadable,
            "counts as the strictest that it may say",
        ),
        gone: |name| Change::Policies(PolicyChange::AuthorizationPolicyGone(name)),
        report: Report::AcceptedCondition,
        origins: Origins::All,
    },
    Row {
        kind: Kind::RequestAuthentication,
        name: "RequestAuthentication",
        plural: "requestauthentications",
        group: SECURITY_GROUP,
        versions: &["v1", "v1beta1"],
        namespaced: true,
        optional: true,
        name_is_shared: false,
        read: request_authentication::read,
        unreadable: Unreadable::Strictest(request_authentication::unreadable, "takes no request"),
        gone: |name| Change::Policies(PolicyChange::RequestAuthenticationGone(name)),
        report: Report::AcceptedCondition,
        origins: Origins::All,
    },
    Row {
        kind: Kind::WorkloadEntry,
        name: "WorkloadEntry",
        plural: "workloadentries",
        group: NETWORKING_GROUP,
        versions: &["v1", "v1beta1", "v1alpha3"],
        namespaced: true,
        optional: true,
        name_is_shared: false,
        read: service_entry::read_workload,
        unreadable: Unreadable::InPart(|_, _| Value::Null),
        gone: |name| Change::Mesh(MeshChange::WorkloadEntryGone(name)),
        report: Report::AcceptedCondition,
        origins: Origins::All,
    },
    Row {
        kind: Kind::ServiceEntry,
        name: "ServiceEntry",
        plural: "serviceentries",
        group: NETWORKING_GROUP,
        versions: &["v1", "v1beta1", "v1alpha3"],
        namespaced: true,
        optional: true,
        name_is_shared: false,
        read: service_entry::read,
        unreadable: Unreadable::InPart(|_, _| Value::Null),
        gone: |name| Change::Mesh(MeshChange::ServiceEntryGone(name)),
        report: Report::AcceptedCondition,
        origins: Origins::All,
    },
    Row {
        kind: Kind::Secret,
        name: "Secret",
        plural: "secrets",
        group: "",
        versions: &["v1"],
        namespaced: true,
        optional: false,
        name_is_shared: true,
        read: secret::read,
        unreadable: Unreadable::InPart(|_, _| Value::Null),
        gone: |name| Change::Mesh(MeshChange::SecretGone(name)),
        report: Report::Nothing,
        origins: Origins::Named,
    },
    Row {
        kind: Kind::DestinationRule,
        name: "DestinationRule",
        plural: "destinationrules",
        group: NETWORKING_GROUP,
        versions: &["v1", "v1beta1", "v1alpha3"],
        namespaced: true,
        optional: true,
        name_is_shared: false,
        read: destination_rule::read,
        unreadable: Unreadable::Strictest(destination_rule::unreadable, "closes the way to its host"),
        gone: |name| Change::Mesh(MeshChange::DestinationRuleGone(name)),
        report: Report::AcceptedCondition,
        origins: Origins::All,
    },
];

// A kind's row is found by its position in the enum.
const _: () = {
    let mut at = 0;
    while at < TABLE.len() {
        assert!(TABLE[at].kind as usize == at);
        at += 1;
    }
};

impl Kind {
    /// The rows of all kinds.
    pub(in crate::discovery) fn rows() -> &'static [Row] {
        &TABLE
    }

    /// The row of this kind.
    pub(in crate::discovery) fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// The kind that a manifest names so.
    pub(in crate::discovery) fn named(name: &str, group: &str) -> Option<Self> {
        let row = TABLE.iter().find(|row| row.name == name && (!row.name_is_shared || row.group == group))?;
        Some(row.kind)
    }

    /// Whether verdicts depend on objects of this kind, so that one which is not known has to be thought of as the strictest.
    pub(in crate::discovery) fn restricts(self) -> bool {
        matches!(self, Self::PeerAuthentication | Self::AuthorizationPolicy | Self::RequestAuthentication)
    }

    /// Whether nobody is let in while objects of this kind may be there that are not known.
    pub(in crate::discovery) fn closes(self) -> bool {
        matches!(self, Self::AuthorizationPolicy | Self::RequestAuthentication)
    }

    /// Whether a cluster may well be without its definition, so that nobody waits for one that was never seen.
    pub(in crate::discovery) fn may_be_undefined(self) -> bool {
        !matches!(self, Self::PeerAuthentication | Self::AuthorizationPolicy)
    }

    /// What counts while objects of this kind may be there that are not known, as a part of a sentence.
    pub(in crate::discovery) fn while_unknown(self) -> &'static str {
        match self.closes() {
            true => "nobody is let in to any pod",
            false => "mutual TLS is STRICT for every pod",
        }
    }

    /// The kind as the API's client knows it.
    pub(crate) fn api_resource(self) -> ApiResource {
        let row = self.row();
        ApiResource {
            group: row.group.to_owned(),
            version: row.versions[0].to_owned(),
            api_version: row.api_version(row.versions[0]),
            kind: row.name.to_owned(),
            plural: row.plural.to_owned(),
        }
    }
}

impl Row {
    /// Every `apiVersion` that is read.
    pub(in crate::discovery) fn api_versions(&self) -> impl Iterator<Item = String> {
        self.versions.iter().map(|version| self.api_version(version))
    }

    fn api_version(&self, version: &str) -> String {
        match self.group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        }
    }
}
