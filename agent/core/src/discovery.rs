//! Workloads, services and endpoints, and the way from an original destination to an endpoint.
//!
//! Promises that a look-up costs the same in a large cluster as in a small one, that a snapshot never changes, and that a
//! change costs what it changes. Objects arrive validated; reading them, and policy, are left to others.

mod affinity;
mod delta;
mod destination;
mod join;
mod mesh;
mod objects;

pub use affinity::Affinity;
pub use delta::{Delta, PodDelta};
pub use destination::Destination;
pub use mesh::{Endpoint, Mesh, PortProtocol, ProtocolOrigin, Route, RouteError};
pub use objects::{
    Change, EndpointSlice, ForeignProbe, HostPort, Namespace, Pod, Protocol, Service, ServicePort, Settings,
    SliceEndpoint, SlicePort, TargetPort,
};
