//! Inbound: every new TCP connection to an enrolled pod goes to its agent's listener. With the agent away it is refused.

use ambit_ebpf_common::{Addr, FAMILY_V4, FAMILY_V6, FLOW_PROBE, Flow, ListenerKey, mapped};
use aya_ebpf::{macros::sk_lookup, programs::SkLookupContext};

use crate::{
    connect::count,
    context::read_v6,
    maps::{BYPASS, LISTENERS, NETNS},
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
    // The pod talking to itself. From outside, such a packet is dropped as martian before it gets here.
    if local == remote || loopback(&local) || loopback(&remote) {
        return SK_PASS;
    }
    let Some(&netns) = NETNS.get(0) else {
        return SK_DROP;
    };
    let flow = Flow { netns, remote, local, remote_port, local_port };
    // SAFETY: entries are never edited in place.
    if let Some(owner) = unsafe { BYPASS.get(flow) } {
        if *owner == FLOW_PROBE {
            count(netns, |counters| counters.probes += 1);
        } else {
            count(netns, |counters| counters.bypassed += 1);
        }
        return SK_PASS;
    }
    if LISTENERS.redirect_sk_lookup(&ctx, ListenerKey { netns, family, _pad: 0 }, 0).is_ok() {
        count(netns, |counters| counters.received += 1);
        SK_PASS
    } else {
        count(netns, |counters| counters.refused += 1);
        SK_DROP
    }
}

#[inline(always)]
fn loopback(addr: &Addr) -> bool {
    const V6: Addr = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    (ambit_ebpf_common::is_mapped(addr) && addr[12] == 127) || *addr == V6
}
