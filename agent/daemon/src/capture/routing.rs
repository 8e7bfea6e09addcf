//! What a pod's namespace needs so that the application's answers to the agent's dials stay inside.
//!
//! The agent dials from the client's own address by a marked socket, and the application's socket takes over the mark
//! (`tcp_fwmark_accept`, the kernel's ip-sysctl.rst). One rule for each family leads marked packets to a table whose routes are
//! local, so they end at the agent's socket and not on the way to the client. There is one for each interface, as the answers of a
//! socket that is bound to one take no route of another.

use std::{fs, io, net::Ipv4Addr};

use nix::net::if_::if_nameindex;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{netns::Netns, socket::DELIVERY_MARK};

/// The routing table of the local default route, and the priority of the rule that leads there.
const TABLE: u32 = 15_101;
const PRIORITY: u32 = 32_101;
const LOOPBACK: u32 = 1;
/// Beyond the metric of an IPv6 route that states none.
const AFTER_LOOPBACK: u32 = 2048;
/// How many interfaces of a namespace get a route.
const INTERFACES: usize = 64;

/// (path under `/proc/sys/net`, value while enrolled, value afterwards). `fwmark_reflect` keeps the RST of a port on which
/// nothing listens inside. `tcp_tw_reuse`: all captured connections of a pod share one destination, so the ports of those
/// in TIME_WAIT must be usable again (RFC 6191).
const SYSCTLS: [(&str, &str, &str); 4] = [
    ("ipv4/tcp_fwmark_accept", "1", "0"),
    ("ipv4/fwmark_reflect", "1", "0"),
    ("ipv6/fwmark_reflect", "1", "0"),
    ("ipv4/tcp_tw_reuse", "1", "2"),
];

/// Puts rule, route and sysctls in place; they may be there already.
pub(super) async fn prepare(netns: &Netns, v4: bool, v6: bool) -> io::Result<()> {
    netns.run(|| SYSCTLS.iter().try_for_each(|(name, on, _)| set_sysctl(name, on)))?;
    let handle = connect(netns)?;
    for family in families(v4, v6) {
        match handle_rule_add(&handle, family).await {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    prepare_interfaces(netns, v4, v6).await
}

/// Puts a route in place for each interface that there is; they may be there already.
pub(super) async fn prepare_interfaces(netns: &Netns, v4: bool, v6: bool) -> io::Result<()> {
    let handle = connect(netns)?;
    for interface in interfaces(netns)? {
        for family in families(v4, v6) {
            let route = route(family, interface);
            match handle.route().add(route).replace().execute().await.map_err(into_io) {
                // An interface that is down takes none, and needs none.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists && interface == LOOPBACK => {
                    return Err(error);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The indexes of the interfaces in a namespace, loopback first; of so many that no pod has them the first ones.
fn interfaces(netns: &Netns) -> io::Result<Vec<u32>> {
    let mut found = netns.run(|| {
        let names = if_nameindex().map_err(io::Error::from)?;
        Ok(names.iter().map(nix::net::if_::Interface::index).collect::<Vec<_>>())
    })?;
    found.push(LOOPBACK);
    found.sort_unstable();
    found.dedup();
    found.truncate(INTERFACES);
    Ok(found)
}

/// Brings loopback up in a namespace that nobody has set up yet: no route leads to an interface that is down.
pub(super) async fn loopback_up(netns: &Netns) -> io::Result<()> {
    let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
    connect(netns)?.link().set(up).execute().await.map_err(into_io)
}

/// Takes them off again. The namespace may be gone, or somebody else may have taken them off: nothing to complain of.
pub(super) async fn restore(netns: &Netns) {
    let _: io::Result<()> = netns.run(|| SYSCTLS.iter().try_for_each(|(name, _, off)| set_sysctl(name, off)));
    let Ok(handle) = connect(netns) else {
        return;
    };
    for family in families(true, true) {
        let removed = handle.rule().del(rule(family)).execute().await;
        tracing::trace!(?removed, ?family, netns = %netns.path().display(), "rule");
        for interface in interfaces(netns).unwrap_or_default() {
            let removed = handle.route().del(route(family, interface)).execute().await;
            tracing::trace!(?removed, ?family, interface, netns = %netns.path().display(), "route");
        }
    }
}

fn families(v4: bool, v6: bool) -> impl Iterator<Item = AddressFamily> {
    [(v4, AddressFamily::Inet), (v6, AddressFamily::Inet6)]
        .into_iter()
        .filter_map(|(wanted, family)| wanted.then_some(family))
}

/// A kernel without IPv6 has no settings for it.
fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/{name}"), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6/") => Ok(()),
        result => result,
    }
}

/// A netlink connection inside the namespace; it ends when the handle is dropped.
fn connect(netns: &Netns) -> io::Result<Handle> {
    let (connection, handle, _) = netns.run(rtnetlink::new_connection)?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn handle_rule_add(handle: &Handle, family: AddressFamily) -> io::Result<()> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule(family);
    request.execute().await.map_err(into_io)
}

fn rule(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::FwMark(DELIVERY_MARK),
        RuleAttribute::Table(TABLE),
    ];
    rule
}

fn route(family: AddressFamily, interface: u32) -> rtnetlink::packet_route::route::RouteMessage {
    let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(interface)
        .table_id(TABLE)
        .scope(RouteScope::Host)
        .kind(RouteType::Local);
    if interface != LOOPBACK {
        // Behind that of loopback, and each of its own, so that one does not take the place of another.
        route = route.priority(AFTER_LOOPBACK.saturating_add(interface));
    }
    let mut route = route.build();
    route.header.address_family = family;
    route
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
