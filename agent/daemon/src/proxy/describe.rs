//! What telemetry is told of a connection: made from what routing and handshake have found, here and nowhere else.

use std::sync::Arc;

use ambit_core::model::{SpiffeId, Workload};

use super::{
    inbound::Called,
    outbound::{Routed, Way},
};
use crate::{
    telemetry::{ConnectionId, Direction, Meta, Party, Security},
    tunnel::{Incoming, Order, PeerFacts},
};

/// A connection of one of our clients; `peer` and whether the session was there already, once there is one.
pub(super) fn outbound(routed: &Routed, session: Option<(&PeerFacts, bool)>) -> Meta {
    let endpoint = match &routed.way {
        Way::Tunnel(_, endpoint, _) | Way::Plain(endpoint) => Some(endpoint),
        Way::Passthrough | Way::Observed | Way::ByName(_) | Way::Resolve(_) | Way::Refused(_) => None,
    };
    Meta {
        direction: Direction::Outbound,
        source: party(routed.client.as_ref(), session.is_some()),
        destination: Party {
            workload: endpoint.map(|endpoint| endpoint.workload.clone()),
            identity: session.map(|(peer, _)| peer.peer.id.clone()),
        },
        source_addr: routed.source,
        destination_addr: endpoint.map_or(routed.original_dst.0, |endpoint| endpoint.addr.0),
        original_dst: Some(routed.original_dst.0),
        service: endpoint.and_then(|endpoint| endpoint.service.clone()),
        security: session.map_or(Security::Plaintext, |(peer, reused)| mutual_tls(peer, reused)),
        id: match &routed.way {
            Way::Tunnel(_, _, order) => Some(id(*order)),
            _ => None,
        },
    }
}

/// The same for one that is joined with another pod of this node.
pub(super) fn joined_outbound(routed: &Routed) -> Meta {
    let endpoint = match &routed.way {
        Way::Tunnel(_, endpoint, _) => Some(&endpoint.workload),
        _ => None,
    };
    Meta {
        source: party(routed.client.as_ref(), true),
        destination: party(endpoint, true),
        security: Security::LocalIdentity,
        ..outbound(routed, None)
    }
}

/// The same under TLS that the agent speaks for the application.
pub(super) fn under_tls(meta: Meta) -> Meta {
    Meta { security: Security::Tls, ..meta }
}

/// A connection to one of our pods; the stream's facts, once there is one.
pub(super) fn inbound(
    called: &Called,
    session: Option<(&PeerFacts, bool)>,
    stream: Option<&Incoming>,
) -> Meta {
    Meta {
        direction: Direction::Inbound,
        source: Party {
            workload: called.caller.clone(),
            identity: session.map(|(facts, _)| facts.peer.id.clone()),
        },
        destination: party(called.workload.as_ref(), session.is_some()),
        source_addr: called.source.0,
        destination_addr: called.destination.0,
        original_dst: stream.map(|stream| stream.original_dst),
        service: None,
        security: session.map_or(Security::Plaintext, |(facts, reused)| mutual_tls(facts, reused)),
        id: stream.map(|stream| id(stream.order)),
    }
}

/// The same for one that is joined with another pod of this node, which is believed to be `client`.
pub(super) fn joined_inbound(called: &Called, client: &SpiffeId, stream: &Incoming) -> Meta {
    Meta {
        source: Party { workload: called.caller.clone(), identity: Some(client.clone()) },
        destination: party(called.workload.as_ref(), true),
        security: Security::LocalIdentity,
        ..inbound(called, None, Some(stream))
    }
}

/// Numbers are sent to the other agent, which sees the same.
fn id(order: Order) -> ConnectionId {
    ConnectionId { epoch: order.epoch, number: order.number }
}

fn mutual_tls(peer: &PeerFacts, reused: bool) -> Security {
    Security::MutualTls { group: peer.group, reused }
}

/// A pod, with its identity where it has proved that, or has to others.
fn party(workload: Option<&Arc<Workload>>, proven: bool) -> Party {
    Party {
        workload: workload.cloned(),
        identity: workload.filter(|_| proven).map(|workload| workload.identity.clone()),
    }
}
