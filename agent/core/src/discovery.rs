//! Workloads, services and endpoints, and the way from an original destination to an endpoint.
//!
//! Promises that a look-up costs the same in a large cluster as in a small one, that a snapshot never changes, and that a
//! change costs what it changes. Objects arrive validated; reading them, and policy, are left to others.

mod affinity;
mod delta;
mod destination;
mod destination_rule;
mod join;
mod mesh;
mod objects;
mod rules;
mod service_entry;
mod vips;

pub use affinity::Affinity;
pub use delta::{Delta, PodDelta};
pub use destination::Destination;
pub use destination_rule::{
    ClientCertificate, ClientSettings, ClientTls, ConnectionPool, DestinationRule, ExportTo, HostPattern,
    Keepalive, Origination, Roots, TlsSecret, TrafficPolicy,
};
pub use mesh::{
    ClientRule, Endpoint, Mesh, Named, PortProtocol, Preferences, ProtocolOrigin, Route, RouteError,
};
pub use objects::{
    Change, DNS_CAPTURE_LABEL, Distribution, EndpointSlice, ForeignProbe, Hints, HostPort, Namespace, Node,
    OUTBOUND_POLICY_LABEL, OutboundPolicy, Pod, Protocol, ProviderPlace, Service, ServicePort, Settings,
    SliceEndpoint, SlicePort, TargetPort,
};
pub use service_entry::{
    EntryAddress, EntryEndpoint, EntryPort, EntryProtocol, Prefix, Resolution, ServiceEntry, WorkloadEntry,
};
pub use vips::VipRanges;
