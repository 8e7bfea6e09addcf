//! DNS of pods that opt in: what they send to UDP port 53 goes to the agent's socket for that resolver, and what comes from there
//! bears the resolver's address. With the agent away all of it is left alone.

use ambit_ebpf_common::{
    Addr, CAPTURE_DNS, DNS_PORT, FAMILY_V4, FAMILY_V6, Pod, RESOLVER_SLOTS, ResolverKey, SOCKET_QUERIES,
    SOCKET_TUNNEL, Socket, is_mapped,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_tuple,
    helpers::generated::{bpf_get_netns_cookie, bpf_sk_lookup_udp, bpf_sk_release, bpf_sk_storage_get},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use crate::{
    connect::{
        bound, is_here, set_user_port, set_user_v4, set_user_v6, tail, user_port, user_v4, user_v6, words,
    },
    maps::{PODS, QUERIES, RESOLVERS, SOCKETS},
};

const ALLOW: i32 = 1;
const IPPROTO_UDP: u32 = 17;
/// An insertion fails where there is an entry (bpf(2)).
const BPF_NOEXIST: u64 = 1;

/// `sendto(2)` and `sendmsg(2)` of UDP sockets that name their destination, IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn ambit_sendmsg4(ctx: SockAddrContext) -> i32 {
    if user_port(&ctx) == DNS_PORT {
        let dst = ambit_ebpf_common::mapped(user_v4(&ctx).to_ne_bytes());
        send(&ctx, &dst, |pod, port| {
            set_user_v4(&ctx, tail(&pod.v4));
            set_user_port(&ctx, port);
        });
    }
    ALLOW
}

/// The same, IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn ambit_sendmsg6(ctx: SockAddrContext) -> i32 {
    if user_port(&ctx) == DNS_PORT {
        let dst = user_v6(&ctx);
        send(&ctx, &dst, |pod, port| {
            set_user_v6(&ctx, if is_mapped(&dst) { &pod.v4 } else { &pod.v6 });
            set_user_port(&ctx, port);
        });
    }
    ALLOW
}

/// `recvfrom(2)` and `recvmsg(2)` of UDP sockets that ask for the source, IPv4.
#[cgroup_sock_addr(recvmsg4)]
pub fn ambit_recvmsg4(ctx: SockAddrContext) -> i32 {
    name_resolver_v4(&ctx);
    ALLOW
}

/// The same, IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn ambit_recvmsg6(ctx: SockAddrContext) -> i32 {
    name_resolver_v6(&ctx);
    ALLOW
}

/// Whether a TCP connection to `dst` and `port` is one of DNS that the agent is to have, if it is there.
#[inline(always)]
pub fn is_dns(pod: &Pod, dst: &Addr, port: u32) -> bool {
    port == u32::from(DNS_PORT) && pod.captures & CAPTURE_DNS != 0 && !is_here(dst)
}

/// `connect(2)` of a UDP socket.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, dst: &Addr, redirect: impl FnOnce(&Pod, u16)) {
    // SAFETY: the context is valid for the program's run; the verifier checks the access.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    if protocol == IPPROTO_UDP && user_port(ctx) == DNS_PORT {
        send(ctx, dst, redirect);
    }
}

/// The peer of a UDP socket that is connected to the agent.
#[inline(always)]
pub fn peer(ctx: &SockAddrContext, v4: bool) {
    // SAFETY: the context is valid for the program's run; the verifier checks the access.
    if unsafe { (*ctx.sock_addr).protocol } != IPPROTO_UDP {
        return;
    }
    if v4 {
        name_resolver_v4(ctx);
    } else {
        name_resolver_v6(ctx);
    }
}

#[inline(always)]
fn send(ctx: &SockAddrContext, dst: &Addr, redirect: impl FnOnce(&Pod, u16)) {
    // SAFETY: the context is this program's own.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the agent replaces entries as a whole.
    let Some(pod) = (unsafe { PODS.get(netns) }) else { return };
    if pod.captures & CAPTURE_DNS == 0 || *dst == pod.v4 || *dst == pod.v6 || is_here(dst) {
        return;
    }
    // SAFETY: the returned pointer is null or valid for the program's run.
    let own = unsafe { SOCKETS.get_ptr_mut(ctx).as_ref() };
    // What is sent from port 53 are the answers of a server.
    if own.is_some_and(|socket| socket.kind == SOCKET_TUNNEL) || bound(ctx, true).1 == DNS_PORT {
        return;
    }
    let (own, family) = if is_mapped(dst) { (&pod.v4, FAMILY_V4) } else { (&pod.v6, FAMILY_V6) };
    if let Some(port) = slot_of(netns, family, dst)
        && takes_queries(ctx, own, port)
    {
        redirect(pod, port);
    }
}

/// The agent's port for a resolver: the slot that the resolver has, or gets; none if all are taken.
#[inline(always)]
fn slot_of(netns: u64, family: u32, dst: &Addr) -> Option<u16> {
    for slot in 0..RESOLVER_SLOTS {
        let key = ResolverKey { netns, family, slot };
        // SAFETY: entries are never edited in place.
        let mut holder = unsafe { RESOLVERS.get(key) };
        if holder.is_none() {
            // Another CPU may have been quicker.
            let _: Result<(), i32> = RESOLVERS.insert(key, *dst, BPF_NOEXIST);
            // SAFETY: as above.
            holder = unsafe { RESOLVERS.get(key) };
        }
        if holder == Some(dst) {
            // SAFETY: as above.
            return unsafe { QUERIES.get(key) }.map(|port| *port as u16);
        }
    }
    None
}

/// Whether the agent's socket is there. Its port may be anybody's while the agent is away.
#[inline(always)]
fn takes_queries(ctx: &SockAddrContext, own: &Addr, port: u16) -> bool {
    const CURRENT_NETNS: u64 = u64::MAX;
    // SAFETY: all zero is a tuple.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if is_mapped(own) {
        tuple.__bindgen_anon_1.ipv4.saddr = tail(own);
        tuple.__bindgen_anon_1.ipv4.daddr = tail(own);
        tuple.__bindgen_anon_1.ipv4.dport = port.to_be();
        12
    } else {
        tuple.__bindgen_anon_1.ipv6.saddr = words(own);
        tuple.__bindgen_anon_1.ipv6.daddr = words(own);
        tuple.__bindgen_anon_1.ipv6.dport = port.to_be();
        36
    };
    // SAFETY: the tuple lives as long as the call; a socket that is found is released; what is stored with it is null or valid until
    // then.
    unsafe {
        let sk = bpf_sk_lookup_udp(ctx.as_ptr(), &raw mut tuple, size, CURRENT_NETNS, 0);
        if sk.is_null() {
            return false;
        }
        let stored =
            bpf_sk_storage_get((&raw const SOCKETS).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0)
                .cast::<Socket>()
                .as_ref();
        let found = stored.is_some_and(|socket| socket.kind == SOCKET_QUERIES);
        bpf_sk_release(sk.cast());
        found
    }
}

#[inline(always)]
fn name_resolver_v4(ctx: &SockAddrContext) {
    let source = ambit_ebpf_common::mapped(user_v4(ctx).to_ne_bytes());
    if let Some(resolver) = resolver_behind(ctx, &source) {
        set_user_v4(ctx, tail(resolver));
        set_user_port(ctx, DNS_PORT);
    }
}

#[inline(always)]
fn name_resolver_v6(ctx: &SockAddrContext) {
    let source = user_v6(ctx);
    if let Some(resolver) = resolver_behind(ctx, &source) {
        set_user_v6(ctx, resolver);
        set_user_port(ctx, DNS_PORT);
    }
}

/// The resolver that the agent's socket at this address, and the port in the context, stands for.
#[inline(always)]
fn resolver_behind<'a>(ctx: &SockAddrContext, source: &Addr) -> Option<&'a Addr> {
    // SAFETY: the context is this program's own.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the agent replaces entries as a whole.
    let pod = unsafe { PODS.get(netns) }?;
    if pod.captures & CAPTURE_DNS == 0 || (*source != pod.v4 && *source != pod.v6) {
        return None;
    }
    let family = if is_mapped(source) { FAMILY_V4 } else { FAMILY_V6 };
    let port = u32::from(user_port(ctx));
    for slot in 0..RESOLVER_SLOTS {
        let key = ResolverKey { netns, family, slot };
        // SAFETY: entries are never edited in place.
        if unsafe { QUERIES.get(key) } == Some(&port) {
            // SAFETY: as above.
            return unsafe { RESOLVERS.get(key) };
        }
    }
    None
}
