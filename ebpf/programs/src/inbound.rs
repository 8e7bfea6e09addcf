//! Inbound: every new TCP connection to an enrolled pod, and every captured one inside it, goes to the agent's listener. With
//! the agent away it is refused, whoever listens there instead.

use ambit_ebpf_common::{
    Addr, FAMILY_V4, FAMILY_V6, FLOW_PROBE, Flow, ListenerKey, OriginKey, is_loopback, mapped,
};
use aya_ebpf::{macros::sk_lookup, programs::SkLookupContext};

use crate::{
    connect::{count, is_agents},
    context::read_v6,
    maps::{BYPASS, LISTENERS, NETNS, ORIGINS, PODS},
};

const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;
const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

/// Chooses the listening socket for a new connection.
#[sk_lookup]
pub fn ambit_inbound(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: the context is valid for the program's run; the verifier checks every access.
    let (protocol, family, local_port, remote_port) = unsafe {
        (
            (*lookup).protocol,
            (*lookup).family,
            (*lookup).local_port,
            u32::from(u16::from_be((*lookup).remote_port)),
        )
    };
    if protocol != IPPROTO_TCP {
        return SK_PASS;
    }
    let (local, remote, family) = if family == AF_INET {
        // SAFETY: as above.
        let (local, remote) = unsafe { ((*lookup).local_ip4, (*lookup).remote_ip4) };
        (mapped(local.to_ne_bytes()), mapped(remote.to_ne_bytes()), FAMILY_V4)
    } else {
        // SAFETY: as above.
        unsafe {
            (read_v6(&raw const (*lookup).local_ip6), read_v6(&raw const (*lookup).remote_ip6), FAMILY_V6)
        }
    };
    let Some(&netns) = NETNS.get(0) else {
        return SK_DROP;
    };
    // The pod talking to itself. From outside, such a packet is dropped as martian before it gets here.
    let own = local == remote || is_loopback(&local) || is_loopback(&remote);
    if own {
        let key = OriginKey { netns, addr: remote, port: remote_port, to: local_port };
        if local != remote || ORIGINS.get_ptr(key).is_none() {
            // The agent's port is nobody's: any process of the pod may bind it while the agent is away.
            return if to_agent(netns, &local, local_port) { SK_DROP } else { SK_PASS };
        }
    } else if let Some(probe) = let_through(Flow { netns, remote, local, remote_port, local_port }) {
        if probe {
            count(netns, |counters| counters.probes += 1);
        }
        return SK_PASS;
    }
    if LISTENERS.redirect_sk_lookup(&ctx, ListenerKey { netns, family, _pad: 0 }, 0).is_ok() {
        if !own {
            count(netns, |counters| counters.received += 1);
        }
        SK_PASS
    } else {
        count(netns, |counters| counters.refused += 1);
        SK_DROP
    }
}

/// Whether the connection goes to the application itself, and if so, whether it is a probe.
#[inline(always)]
fn let_through(flow: Flow) -> Option<bool> {
    // SAFETY: entries are never edited in place.
    unsafe { BYPASS.get(flow) }.map(|owner| *owner == FLOW_PROBE)
}

#[inline(always)]
fn to_agent(netns: u64, local: &Addr, port: u32) -> bool {
    // SAFETY: the agent replaces entries as a whole.
    unsafe { PODS.get(netns) }.is_some_and(|pod| is_agents(pod, local, port as u16))
}
