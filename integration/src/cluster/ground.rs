//! Where a cluster is: addresses that no other cluster of this machine has.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::api_server::PORT;
use crate::netns::Netns;

/// The addresses of one cluster: half of the network that exists only in namespaces of the tests.
///
/// ```text
///   198.18.0.1    198.19.0.1      control planes, routers to the other cluster
///   198.18.0.11   198.19.0.11     nodes
///   198.18.11.0   198.19.11.0     pods of a node
///   198.18.128.0  198.19.128.0    services, which no router knows
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ground(u8);

impl Ground {
    /// That of a cluster alone.
    pub const FIRST: Self = Self(18);
    /// That of a second cluster.
    pub const SECOND: Self = Self(19);

    /// The control plane's address in its namespace: of the API server, of the cluster's DNS, and the next hop of nodes.
    pub fn control_plane(self) -> String {
        format!("198.{}.0.1", self.0)
    }

    /// The URL of the API, good on nodes and in every control plane.
    pub fn api(self) -> String {
        format!("https://{}:{PORT}", self.control_plane())
    }

    /// Cluster addresses of services.
    pub(super) fn services(self) -> String {
        format!("198.{}.128.0/20", self.0)
    }

    /// The first of them, which the API server itself has.
    pub(super) fn first_service(self) -> String {
        format!("198.{}.128.1", self.0)
    }

    /// A node's address by its last part.
    pub(super) fn node(self, octet: u8) -> String {
        format!("198.{}.0.{octet}", self.0)
    }

    /// The addresses of its pods.
    pub(super) fn pods(self, octet: u8) -> String {
        format!("198.{}.{octet}.0/24", self.0)
    }

    /// Nodes and pods, of all but services.
    fn network(self) -> String {
        format!("198.{}.0.0/17", self.0)
    }
}

/// Wires two control planes, so that pods and nodes of both clusters reach each other by their own addresses.
pub(super) fn join(one: (&Netns, Ground), other: (&Netns, Ground)) -> Result<()> {
    const WIRE: &str = "clusters";
    one.0.ip(&["link", "add", WIRE, "type", "veth", "peer", "name", WIRE, "netns", other.0.name()])?;
    let ends = ["198.19.255.1", "198.19.255.2"];
    for ((netns, _), end) in [one, other].into_iter().zip(ends) {
        netns.ip(&["address", "add", &format!("{end}/30"), "dev", WIRE])?;
        netns.ip(&["link", "set", WIRE, "up"])?;
        netns.sysctl(&["net.ipv4.ip_forward=1"])?;
    }
    one.0.ip(&["route", "add", &other.1.network(), "via", ends[1]])?;
    other.0.ip(&["route", "add", &one.1.network(), "via", ends[0]])?;
    Ok(())
}
