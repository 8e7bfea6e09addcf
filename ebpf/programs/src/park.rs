//! Parking: a filter on the agent's listeners takes SYNs off until the agent knows what is to be answered, and hands copies
//! to it. What the agent sends again passes, as do tunnels, and connections to where several have just been answered.

use ambit_ebpf_common::{
    ADMITTED_V4, ADMITTED_V6, ADMITTED_V6_HOPS, Addr, CAPTURE_EVERYTHING, DestinationKey, EVERY_PORT, Knock,
    MAX_TCP_HEADER, Origin, OriginKey, mapped,
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes, bpf_skb_load_bytes_relative},
    macros::socket_filter,
    programs::SkBuffContext,
};

use crate::maps::{ANSWERED, DESTINATIONS, NETNS, ORIGINS, PACE, PARKED, SETTINGS};

/// What a filter answers: how many bytes are kept.
const TAKE: i64 = 0xffff_ffff;
const DROP: i64 = 0;
/// The TCP header without its options.
const FIXED: usize = 20;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;
/// BPF_HDR_START_NET
const NETWORK_HEADER: u32 = 1;
/// SYNs from outside that are parked in a second. More are taken as they come: with each the agent would dial the
/// application, also in the name of clients that are not there.
const FROM_OUTSIDE: u64 = 128;

/// The network header, as far as it counts.
struct Network {
    remote: Addr,
    local: Addr,
    traffic_class: u32,
    admitted: bool,
}

/// Sees every segment that reaches a listener, from its TCP header on.
#[socket_filter]
pub fn ambit_park(ctx: SkBuffContext) -> i64 {
    let Ok(fixed) = ctx.load::<[u8; FIXED]>(0) else {
        return TAKE;
    };
    if fixed[13] & (SYN | ACK | RST) != SYN {
        return TAKE;
    }
    let Some(network) = network(&ctx) else {
        return TAKE;
    };
    if network.admitted {
        return TAKE;
    }
    let Some(&netns) = NETNS.get(0) else {
        return TAKE;
    };
    let remote_port = u32::from(u16::from_be_bytes([fixed[0], fixed[1]]));
    let local_port = u32::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    let Network { remote, local, traffic_class, .. } = network;
    let origin = if remote == local {
        // SAFETY: entries are never edited in place.
        let origin =
            unsafe { ORIGINS.get(OriginKey { netns, addr: remote, port: remote_port, to: local_port }) };
        match origin {
            Some(origin) => *origin,
            None => return TAKE,
        }
    } else {
        if is_meshed(&remote) {
            return TAKE;
        }
        Origin { addr: [0; 16], port: 0, _pad: 0 }
    };
    let inbound = origin.port == 0;
    let (addr, port) = if inbound { (local, local_port) } else { (origin.addr, origin.port) };
    if has_answered(addr, port) || (inbound && !has_time()) {
        return TAKE;
    }
    let mut knock = Knock {
        remote,
        local,
        remote_port,
        local_port,
        origin,
        traffic_class,
        // The data offset, in words.
        len: u32::from(fixed[12] >> 4) * 4,
        header: [0; MAX_TCP_HEADER],
    };
    knock.header[..FIXED].copy_from_slice(&fixed);
    // Option by option, in words: the verifier wants to see how much is read.
    for word in FIXED / 4..MAX_TCP_HEADER / 4 {
        let at = word * 4;
        if at < knock.len as usize && !load(&ctx, &mut knock.header, at) {
            return TAKE;
        }
    }
    // With no room for it the SYN is lost, as it may be on any network: the client sends another.
    let _: Result<(), i32> = PARKED.output::<Knock>(&knock, 0);
    DROP
}

#[inline(always)]
fn network(ctx: &SkBuffContext) -> Option<Network> {
    let mut header = [0_u8; 20];
    if !load_network(ctx, 0, &mut header) {
        return None;
    }
    if header[0] >> 4 == 4 {
        let at = |index: usize| [header[index], header[index + 1], header[index + 2], header[index + 3]];
        return Some(Network {
            remote: mapped(at(12)),
            local: mapped(at(16)),
            traffic_class: u32::from(header[1]),
            admitted: u16::from_be_bytes([header[6], header[7]]) & ADMITTED_V4 != 0,
        });
    }
    let (mut remote, mut local) = ([0; 16], [0; 16]);
    if !load_network(ctx, 8, &mut remote) || !load_network(ctx, 24, &mut local) {
        return None;
    }
    let first = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    // What is link-local has a zone, which the agent does not see.
    let link_local = remote[0] == 0xfe && remote[1] & 0xc0 == 0x80;
    Some(Network {
        remote,
        local,
        traffic_class: (first >> 20) & 0xff,
        admitted: link_local || (first & 0xf_ffff == ADMITTED_V6 && header[7] == ADMITTED_V6_HOPS),
    })
}

/// Whether it is a pod that comes through a tunnel.
#[inline(always)]
fn is_meshed(addr: &Addr) -> bool {
    SETTINGS.get(0) == Some(&CAPTURE_EVERYTHING)
        || DESTINATIONS.get_ptr(DestinationKey { addr: *addr, port: EVERY_PORT }).is_some()
}

#[inline(always)]
fn has_answered(addr: Addr, port: u32) -> bool {
    // SAFETY: entries are never edited in place.
    match unsafe { ANSWERED.get(DestinationKey { addr, port }) } {
        // SAFETY: it takes no arguments.
        Some(until) => *until > unsafe { bpf_ktime_get_ns() },
        None => false,
    }
}

/// Whether another SYN from outside may be parked. Two CPUs at a time may count one too few.
#[inline(always)]
fn has_time() -> bool {
    let Some(pace) = PACE.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: it takes no arguments.
    let second = (unsafe { bpf_ktime_get_ns() } >> 30) << 32;
    // SAFETY: the entry is valid for the program's run.
    unsafe {
        let count = if *pace & !0xffff_ffff == second { *pace & 0xffff_ffff } else { 0 };
        *pace = second | (count + 1).min(FROM_OUTSIDE);
        count < FROM_OUTSIDE
    }
}

/// Loads a word of the segment to its place in the header.
#[inline(always)]
fn load(ctx: &SkBuffContext, header: &mut [u8; MAX_TCP_HEADER], at: usize) -> bool {
    // SAFETY: there is room for a word.
    unsafe {
        let word = header.as_mut_ptr().add(at);
        bpf_skb_load_bytes(ctx.as_ptr().cast(), at as u32, word.cast(), 4) == 0
    }
}

#[inline(always)]
fn load_network<const N: usize>(ctx: &SkBuffContext, offset: u32, to: &mut [u8; N]) -> bool {
    // SAFETY: as above.
    unsafe {
        bpf_skb_load_bytes_relative(
            ctx.as_ptr().cast(),
            offset,
            to.as_mut_ptr().cast(),
            N as u32,
            NETWORK_HEADER,
        ) == 0
    }
}
