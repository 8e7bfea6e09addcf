//! What connections can be captured by.

use std::net::{IpAddr, SocketAddr};

/// Something that enrolled pods may dial, and whose connections are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// An address with all its ports: a pod's, or a cluster IP.
    Address(IpAddr),
    /// One port of an address that may be anybody's otherwise: a load balancer's, or an external IP.
    Port(SocketAddr),
    /// A port of every node.
    NodePort(u16),
    /// An address of a node, at which node ports are found.
    Node(IpAddr),
}
