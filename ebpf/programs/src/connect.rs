//! Outbound: a connect of an enrolled pod to a meshed destination goes to the pod's own address, at a port that the
//! destination makes, where the inbound hook gives it to the agent; the socket remembers where it was going, and `getpeername`
//! answers with that.

use ambit_ebpf_common::{
    ANY_NODE, Addr, CAPTURE_EVERYTHING, Counters, DestinationKey, EVERY_PORT, FAMILY_V4, FAMILY_V6,
    ListenerKey, NODE, Pod, ProbeKey, SOCKET_CAPTURED, SOCKET_DELIVERY, SOCKET_NONE, SOCKET_PROBE,
    SOCKET_TUNNEL, Socket, is_loopback, is_mapped, mapped, next_redirect_port, redirect_port,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_tuple,
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_map_lookup_elem, bpf_set_retval, bpf_sk_release,
        bpf_skc_lookup_tcp,
    },
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use aya_log_ebpf::debug;

use crate::{
    context::{read_v6, write_v6},
    dns,
    maps::{COUNTERS, DESTINATIONS, KUBELETS, LISTENERS, PODS, PROBES, SETTINGS, SOCKETS},
};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const EPROTONOSUPPORT: i32 = 93;
const ECONNREFUSED: i32 = 111;
const EADDRINUSE: i32 = 98;
const TCP_LISTEN: u32 = 10;
const TCP_TIME_WAIT: u32 = 6;
/// Ports that are looked at for one that a socket with a source port of its own has not used yet.
const REDIRECT_ATTEMPTS: u32 = 3;

/// `connect(2)` of IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub fn ambit_connect4(ctx: SockAddrContext) -> i32 {
    let dst = mapped(user_v4(&ctx).to_ne_bytes());
    connect(&ctx, dst, |pod, port| {
        set_user_v4(&ctx, tail(&pod.v4));
        set_user_port(&ctx, port);
    })
}

/// `connect(2)` of IPv6 sockets, mapped IPv4 destinations included: those are IPv4 on the wire.
#[cgroup_sock_addr(connect6)]
pub fn ambit_connect6(ctx: SockAddrContext) -> i32 {
    let dst = user_v6(&ctx);
    connect(&ctx, dst, |pod, port| {
        set_user_v6(&ctx, if is_mapped(&dst) { &pod.v4 } else { &pod.v6 });
        set_user_port(&ctx, port);
    })
}

/// `getpeername(2)` of IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub fn ambit_getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(socket) = captured(&ctx) {
        set_user_v4(&ctx, tail(&socket.addr));
        set_user_port(&ctx, socket.port as u16);
    } else {
        dns::peer(&ctx, true);
    }
    ALLOW
}

/// `getpeername(2)` of IPv6 sockets.
#[cgroup_sock_addr(getpeername6)]
pub fn ambit_getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(socket) = captured(&ctx) {
        set_user_v6(&ctx, &socket.addr);
        set_user_port(&ctx, socket.port as u16);
    } else {
        dns::peer(&ctx, false);
    }
    ALLOW
}

/// `socket(2)`: MPTCP is answered in enrolled pods as by a kernel without it, so that programs fall back to TCP. The
/// subflows of an MPTCP socket are sockets of their own, which could not be tied to it.
#[cgroup_sock(sock_create)]
pub fn ambit_sock_create(ctx: SockContext) -> i32 {
    // SAFETY: the context is valid for the program's run; the verifier checks the access.
    let protocol = unsafe { (*ctx.sock).protocol };
    if protocol != IPPROTO_MPTCP {
        return ALLOW;
    }
    // SAFETY: the context is this program's own.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if PODS.get_ptr(netns).is_none() {
        return ALLOW;
    }
    count(netns, |counters| counters.refused += 1);
    debug!(&ctx, "MPTCP socket refused in pod netns {}: TCP is carried instead", netns);
    // SAFETY: no pointers are passed.
    unsafe { bpf_set_retval(-EPROTONOSUPPORT) };
    REFUSE
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, dst: Addr, redirect: impl FnOnce(&Pod, u16)) -> i32 {
    // SAFETY: the context is valid for the program's run; the verifier checks the access.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
        dns::connect(ctx, &dst, redirect);
        return ALLOW;
    }
    // SAFETY: the context is this program's own.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the agent replaces entries as a whole; a torn read is not possible for values it never edits in place.
    let Some(pod) = (unsafe { PODS.get(netns) }) else {
        if protocol == IPPROTO_TCP {
            probe(ctx, netns, dst);
        }
        return ALLOW;
    };
    // SAFETY: the returned pointer is null or valid for the program's run.
    let known = unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() };
    if let Some(socket) = known {
        if socket.kind == SOCKET_TUNNEL {
            return ALLOW;
        }
        if socket.kind == SOCKET_DELIVERY {
            return deliver(ctx, netns, &dst);
        }
        // While one agent replaces another's programs, both run: the first one has captured this connect.
        if socket.kind == SOCKET_CAPTURED
            && (dst == pod.v4 || dst == pod.v6)
            && u32::from(user_port(ctx)) == socket.redirect
        {
            return ALLOW;
        }
        // A socket that connects once more, elsewhere.
        socket.kind = SOCKET_NONE;
    }
    let (own, listens, family) = if is_mapped(&dst) {
        (&pod.v4, pod.v4_port != 0, FAMILY_V4)
    } else {
        (&pod.v6, pod.v6_port != 0, FAMILY_V6)
    };
    let port = u32::from(user_port(ctx));
    let is_itself = dst == pod.v4 || dst == pod.v6;
    let captured = !is_itself && is_captured(pod, &dst, port);
    // Names are to be had without the agent, too.
    let offered = !is_itself && !captured && protocol == IPPROTO_TCP && dns::is_dns(pod, &dst, port);
    let served = (captured || offered) && listens && agent_listens(netns, family);
    if !(captured || (offered && served)) {
        count(netns, |counters| counters.passed += 1);
        return ALLOW;
    }
    let port = free_port(ctx, own, redirect_port(&dst, port));
    if protocol == IPPROTO_MPTCP || !served || !remember(ctx, dst, port) {
        count(netns, |counters| counters.refused += 1);
        debug!(ctx, "connect refused in pod netns {}: protocol {}", netns, protocol);
        // SAFETY: no pointers are passed.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        return REFUSE;
    }
    count(netns, |counters| counters.captured += 1);
    redirect(pod, port);
    ALLOW
}

/// The agent's dial to the application, in the name of a client whose own connection may have the same port: the dial would
/// meet that one.
#[inline(always)]
fn deliver(ctx: &SockAddrContext, netns: u64, dst: &Addr) -> i32 {
    let (source, port) = bound(ctx, is_mapped(dst));
    if is_open(ctx, &source, port, dst, user_port(ctx)) {
        // SAFETY: no pointers are passed.
        unsafe { bpf_set_retval(-EADDRINUSE) };
        return REFUSE;
    }
    count(netns, |counters| counters.bypassed += 1);
    ALLOW
}

/// The port to redirect to. A source port that the application has chosen may be that of other connections, to other
/// destinations, with the same redirect; and a socket must not connect to itself.
#[inline(always)]
fn free_port(ctx: &SockAddrContext, own: &Addr, first: u16) -> u16 {
    let (_, source) = bound(ctx, true);
    let mut port = first;
    if source != 0 {
        for _ in 0..REDIRECT_ATTEMPTS {
            if port != source && !is_open(ctx, own, port, own, source) {
                return port;
            }
            port = next_redirect_port(port);
        }
    }
    if port == source { next_redirect_port(port) } else { port }
}

/// The address and port that the socket is bound to.
#[inline(always)]
pub fn bound(ctx: &SockAddrContext, v4: bool) -> (Addr, u16) {
    // SAFETY: the context is valid for the program's run; the verifier checks the accesses.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() {
            return ([0; 16], 0);
        }
        let addr = if v4 {
            mapped(core::ptr::read_volatile(&raw const (*sk).src_ip4).to_ne_bytes())
        } else {
            read_v6(&raw const (*sk).src_ip6)
        };
        (addr, core::ptr::read_volatile(&raw const (*sk).src_port) as u16)
    }
}

/// Whether this network namespace has a connection from `remote` to `local`.
#[inline(always)]
fn is_open(ctx: &SockAddrContext, remote: &Addr, remote_port: u16, local: &Addr, local_port: u16) -> bool {
    const CURRENT_NETNS: u64 = u64::MAX;
    // SAFETY: all zero is a tuple.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if is_mapped(local) {
        tuple.__bindgen_anon_1.ipv4.saddr = tail(remote);
        tuple.__bindgen_anon_1.ipv4.daddr = tail(local);
        tuple.__bindgen_anon_1.ipv4.sport = remote_port.to_be();
        tuple.__bindgen_anon_1.ipv4.dport = local_port.to_be();
        12
    } else {
        tuple.__bindgen_anon_1.ipv6.saddr = words(remote);
        tuple.__bindgen_anon_1.ipv6.daddr = words(local);
        tuple.__bindgen_anon_1.ipv6.sport = remote_port.to_be();
        tuple.__bindgen_anon_1.ipv6.dport = local_port.to_be();
        36
    };
    // SAFETY: the tuple lives as long as the call; a socket that is found is released.
    unsafe {
        let sk = bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size, CURRENT_NETNS, 0);
        if sk.is_null() {
            return false;
        }
        let state = core::ptr::read_volatile(&raw const (*sk).state);
        bpf_sk_release(sk.cast());
        // What is left of a connection that has ended gives way to a new one.
        state != TCP_LISTEN && state != TCP_TIME_WAIT
    }
}

/// Marks a connect of the kubelet, in its own network namespace, to a port that an enrolled pod declares as a probe.
#[inline(always)]
fn probe(ctx: &SockAddrContext, netns: u64, dst: Addr) {
    // SAFETY: it takes no arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: the agent replaces entries as a whole.
    if unsafe { KUBELETS.get(cgroup) } != Some(&netns) {
        return;
    }
    // SAFETY: the returned pointer is null or valid for the program's run.
    if let Some(socket) = unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() } {
        // A socket that connects once more, elsewhere.
        socket.kind = SOCKET_NONE;
    }
    let port = u32::from(user_port(ctx));
    // SAFETY: as above.
    let Some(pod) = (unsafe { PROBES.get(ProbeKey { addr: dst, port }) }) else {
        return;
    };
    store(ctx, Socket { kind: SOCKET_PROBE, port, addr: dst, netns: *pod, redirect: 0, _pad: 0 });
}

/// Whether connections to this port are to be pointed at the agent.
#[inline(always)]
fn is_captured(pod: &Pod, addr: &Addr, port: u32) -> bool {
    let known = |addr: Addr, port: u32| DESTINATIONS.get_ptr(DestinationKey { addr, port }).is_some();
    known(*addr, EVERY_PORT)
        || known(*addr, port)
        || (known(ANY_NODE, port) && known(*addr, NODE))
        || ((pod.captures & CAPTURE_EVERYTHING != 0 || SETTINGS.get(0) == Some(&CAPTURE_EVERYTHING))
            && !is_here(addr))
}

/// Whether a connection to `addr` cannot leave the pod, whatever the pod is; an unspecified address means loopback.
#[inline(always)]
pub fn is_here(addr: &Addr) -> bool {
    *addr == [0; 16] || *addr == mapped([0; 4]) || is_loopback(addr)
}

/// Whether the agent is there to take connections of one family.
#[inline(always)]
fn agent_listens(netns: u64, family: u32) -> bool {
    let key = ListenerKey { netns, family, _pad: 0 };
    // SAFETY: map and key are valid for the call; of a map of sockets the answer is null or a socket that is ours to release.
    unsafe {
        let listener = bpf_map_lookup_elem((&raw const LISTENERS).cast_mut().cast(), (&raw const key).cast());
        !listener.is_null() && bpf_sk_release(listener) == 0
    }
}

/// Whether this is the agent's own listener in the pod.
#[inline(always)]
pub fn is_agents(pod: &Pod, dst: &Addr, port: u16) -> bool {
    port != 0 && ((*dst == pod.v4 && port == pod.v4_port) || (*dst == pod.v6 && port == pod.v6_port))
}

#[inline(always)]
fn remember(ctx: &SockAddrContext, dst: Addr, redirect: u16) -> bool {
    let port = u32::from(user_port(ctx));
    let redirect = u32::from(redirect);
    store(ctx, Socket { kind: SOCKET_CAPTURED, port, addr: dst, netns: 0, redirect, _pad: 0 })
}

#[inline(always)]
fn store(ctx: &SockAddrContext, mut socket: Socket) -> bool {
    // SAFETY: the returned pointer is null or valid for the program's run.
    match unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut socket)).as_mut() } {
        Some(stored) => {
            *stored = socket;
            true
        }
        None => false,
    }
}

#[inline(always)]
fn captured(ctx: &SockAddrContext) -> Option<&Socket> {
    // SAFETY: the returned pointer is null or valid for the program's run.
    let socket = unsafe { SOCKETS.get_ptr_mut(ctx).as_ref() }?;
    (socket.kind == SOCKET_CAPTURED).then_some(socket)
}

/// Counts in the pod's own entry; a pod without one is not counted.
#[inline(always)]
pub fn count(netns: u64, change: impl FnOnce(&mut Counters)) {
    if let Some(counters) = COUNTERS.get_ptr_mut(netns) {
        // SAFETY: the entry is this CPU's own, and programs are not interrupted by themselves.
        change(unsafe { &mut *counters });
    }
}

#[inline(always)]
pub fn tail(addr: &Addr) -> u32 {
    u32::from_ne_bytes([addr[12], addr[13], addr[14], addr[15]])
}

#[inline(always)]
pub fn words(addr: &Addr) -> [u32; 4] {
    // SAFETY: both are 16 bytes of integers.
    unsafe { core::mem::transmute::<Addr, [u32; 4]>(*addr) }
}

// The verifier wants each field of the context read and written by itself, in its own width.

#[inline(always)]
pub fn user_v4(ctx: &SockAddrContext) -> u32 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip4) }
}

#[inline(always)]
pub fn set_user_v4(ctx: &SockAddrContext, v4: u32) {
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, v4) }
}

#[inline(always)]
pub fn user_port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: as above.
    u16::from_be(unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_port) } as u16)
}

#[inline(always)]
pub fn set_user_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from(port.to_be())) }
}

#[inline(always)]
pub fn user_v6(ctx: &SockAddrContext) -> Addr {
    // SAFETY: as above.
    unsafe { read_v6(&raw const (*ctx.sock_addr).user_ip6) }
}

#[inline(always)]
pub fn set_user_v6(ctx: &SockAddrContext, addr: &Addr) {
    // SAFETY: as above.
    unsafe { write_v6(&raw mut (*ctx.sock_addr).user_ip6, addr) }
}
