//! Ties sockets to addresses once the kernel has chosen the source port: the original destination for the inbound hook and
//! the agent, and the 4-tuple of the kubelet's probes for the inbound hook. The agent records its own dials itself. Connections inside a pod
//! begin unpaced.

use ambit_ebpf_common::{
    Addr, FLOW_DELIVERY, FLOW_PROBE, Flow, Origin, OriginKey, SOCKET_CAPTURED, SOCKET_DELIVERY, SOCKET_PROBE,
    Socket, is_mapped, mapped,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get},
    macros::sock_ops,
    programs::SockOpsContext,
};

use crate::{
    context::read_v6,
    maps::{BYPASS, ORIGINS, PODS, SOCKETS},
    pacing, patience,
};

const AF_INET: u32 = 2;
const TCP_ESTABLISHED: u32 = 1;
const TCP_SYN_SENT: u32 = 2;
const TCP_CLOSE: u32 = 7;

/// Runs at every connect's SYN, at every connection that comes about, and at state changes of the sockets that asked for it.
#[sock_ops]
pub fn ambit_sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_STATE_CB => state_changed(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        _ => {}
    }
    0
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let Some(socket) = socket(ctx) else {
        return;
    };
    if socket.kind == SOCKET_CAPTURED {
        let origin = Origin { addr: socket.addr, port: socket.port, _pad: 0 };
        // Without an entry the connection leads to whatever of the pod's own is at that port: nothing, nearly always.
        let _: Result<(), i32> = ORIGINS.insert(origin_key(ctx, socket), origin, 0);
        let _: Result<(), i32> = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    } else if let Some((flow, owner)) = exempt(ctx, socket) {
        // The agent has recorded its own dial, or would not have made it.
        if owner == FLOW_PROBE {
            // A full map means that the probe meets the agent's listener, which judges it as any plaintext.
            let _: Result<(), i32> = BYPASS.insert(flow, owner, 0);
        }
        let _: Result<(), i32> = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    }
}

/// A dial of the agent's is through when the application's end stands, or the agent takes it off: this is for one that fails, for an agent
/// that dies in between, and for probes. The agent takes an original destination off when it accepts: this is for a connect that is
/// given up, which the agent learns so. Nothing that follows matters.
#[inline(always)]
fn state_changed(ctx: &SockOpsContext) {
    let state = ctx.arg(1);
    if state == TCP_SYN_SENT {
        return;
    }
    let Some(socket) = socket(ctx) else {
        return;
    };
    if socket.kind == SOCKET_CAPTURED {
        if ctx.arg(0) == TCP_SYN_SENT && state == TCP_CLOSE {
            let _: Result<(), i32> = ORIGINS.remove(origin_key(ctx, socket));
        }
    } else if state == TCP_ESTABLISHED {
        return;
    } else if let Some((flow, _)) = exempt(ctx, socket) {
        let _: Result<(), i32> = BYPASS.remove(flow);
    }
    let _: Result<(), i32> = ctx.set_cb_flags(0);
}

#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    let Some(socket) = socket(ctx) else {
        return;
    };
    if socket.kind == SOCKET_CAPTURED {
        pacing::stop(ctx);
        // SAFETY: the context is this program's own.
        let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
        patience::established(ctx, &own_flow(ctx, netns));
    } else if socket.kind == SOCKET_DELIVERY {
        pacing::stop(ctx);
    }
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    // SAFETY: the context is this program's own.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if PODS.get_ptr(netns).is_some() {
        let flow = own_flow(ctx, netns);
        patience::established(ctx, &flow);
        if is_captured(&flow) {
            pacing::stop(ctx);
        } else if is_delivery(&flow) {
            pacing::stop(ctx);
            // The inbound hook has no more to say of it.
            let _: Result<(), i32> = BYPASS.remove(flow);
        }
    }
}

/// Whether the other end of an accepted connection is an application that was captured and waits for the agent to accept.
#[inline(always)]
fn is_captured(flow: &Flow) -> bool {
    let Flow { netns, remote, local, remote_port, local_port } = *flow;
    remote == local
        && ORIGINS.get_ptr(OriginKey { netns, addr: remote, port: remote_port, to: local_port }).is_some()
}

/// Whether it is the agent, which has recorded its dial to the application.
#[inline(always)]
fn is_delivery(flow: &Flow) -> bool {
    // SAFETY: entries are never edited in place.
    unsafe { BYPASS.get(flow) }.is_some_and(|owner| *owner == FLOW_DELIVERY)
}

#[inline(always)]
fn origin_key(ctx: &SockOpsContext, socket: &Socket) -> OriginKey {
    // SAFETY: the context is this program's own.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let local = if is_mapped(&socket.addr) { local_v4(ctx) } else { local_v6(ctx) };
    OriginKey { netns, addr: local, port: ctx.local_port(), to: u32::from_be(ctx.remote_port()) }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<&Socket> {
    // SAFETY: the context is valid for the program's run; the verifier checks the access.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is not null; the returned pointer is null or valid for the program's run.
    unsafe {
        bpf_sk_storage_get((&raw const SOCKETS).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0)
            .cast::<Socket>()
            .as_ref()
    }
}

/// A connection that the inbound hook is to let through, and whose it is.
#[inline(always)]
fn exempt(ctx: &SockOpsContext, socket: &Socket) -> Option<(Flow, u32)> {
    if socket.kind == SOCKET_DELIVERY {
        // SAFETY: the context is this program's own.
        let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
        Some((flow(ctx, netns, ctx.family() == AF_INET), FLOW_DELIVERY))
    } else if socket.kind == SOCKET_PROBE {
        Some((flow(ctx, socket.netns, is_mapped(&socket.addr)), FLOW_PROBE))
    } else {
        None
    }
}

/// A connection as the inbound hook in `netns` will see it: our local end is its remote.
#[inline(always)]
fn flow(ctx: &SockOpsContext, netns: u64, v4: bool) -> Flow {
    let (remote, local) = if v4 { (local_v4(ctx), remote_v4(ctx)) } else { (local_v6(ctx), remote_v6(ctx)) };
    Flow { netns, remote, local, remote_port: ctx.local_port(), local_port: u32::from_be(ctx.remote_port()) }
}

/// A connection as its own end has it.
#[inline(always)]
fn own_flow(ctx: &SockOpsContext, netns: u64) -> Flow {
    let Flow { remote, local, remote_port, local_port, .. } = flow(ctx, netns, ctx.family() == AF_INET);
    Flow { netns, remote: local, local: remote, remote_port: local_port, local_port: remote_port }
}

#[inline(always)]
fn local_v4(ctx: &SockOpsContext) -> Addr {
    mapped(ctx.local_ip4().to_ne_bytes())
}

#[inline(always)]
fn remote_v4(ctx: &SockOpsContext) -> Addr {
    mapped(ctx.remote_ip4().to_ne_bytes())
}

#[inline(always)]
fn local_v6(ctx: &SockOpsContext) -> Addr {
    // SAFETY: the context is valid for the program's run; the verifier checks the accesses.
    unsafe { read_v6(&raw const (*ctx.ops).local_ip6) }
}

#[inline(always)]
fn remote_v6(ctx: &SockOpsContext) -> Addr {
    // SAFETY: as above.
    unsafe { read_v6(&raw const (*ctx.ops).remote_ip6) }
}
