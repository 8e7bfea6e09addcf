//! How long applications have the kernel wait for the other end of a connection: their keepalive and user time-outs, for the
//! agent to wait no longer in their place. What was set before a connection stands is read then, what is set later in passing.
//! The same hook keeps the mark of delivered connections.

use core::ffi::c_void;

use ambit_ebpf_common::{Addr, DELIVERY_MARK, Flow, Patience, mapped};
use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::generated::{bpf_get_netns_cookie, bpf_getsockopt},
    macros::cgroup_sockopt,
    programs::{SockOpsContext, SockoptContext},
};

use crate::{
    context::read_v6,
    maps::{PATIENCE, PODS},
};

const ALLOW: i32 = 1;
const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const SOL_SOCKET: i32 = 1;
const SOL_TCP: i32 = 6;
const SO_KEEPALIVE: i32 = 9;
const SO_MARK: i32 = 36;
const TCP_KEEPIDLE: i32 = 4;
const TCP_KEEPINTVL: i32 = 5;
const TCP_KEEPCNT: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;
const TCP_SYN_SENT: u32 = 2;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// `setsockopt(2)`: notes what an application of an enrolled pod sets on a connection, and changes nothing but that the mark of a
/// delivered connection stays.
#[cgroup_sockopt(setsockopt)]
pub fn ambit_setsockopt(ctx: SockoptContext) -> i32 {
    note(&ctx);
    // SAFETY: the context is valid for the program's run; the verifier checks the accesses.
    unsafe {
        let length = &raw mut (*ctx.sockopt).optlen;
        // Taken as done, also if another program on this host has said so; else the kernel goes on with what the application gave,
        // however long that is.
        let done = length.read_volatile() == -1 || is_delivery_mark(&ctx);
        length.write_volatile(if done { -1 } else { 0 });
    }
    ALLOW
}

/// Whether the mark is to be changed that keeps an application's answers inside its pod: with another one they would leave it in
/// plaintext.
#[inline(always)]
fn is_delivery_mark(ctx: &SockoptContext) -> bool {
    // SAFETY: as above.
    let (level, name, sk) =
        unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname, (*ctx.sockopt).__bindgen_anon_1.sk) };
    if level != SOL_SOCKET || name != SO_MARK || sk.is_null() {
        return false;
    }
    // SAFETY: the socket is not null; the verifier checks the access. The context is this program's own.
    let (mark, netns) =
        unsafe { ((&raw const (*sk).mark).read_volatile(), bpf_get_netns_cookie(ctx.as_ptr())) };
    mark == DELIVERY_MARK && PODS.get_ptr(netns).is_some()
}

/// A connection of an enrolled pod stands, whose application's end `flow` is.
#[inline(always)]
pub fn established(ctx: &SockOpsContext, flow: &Flow) {
    let context = ctx.as_ptr();
    if option(context, SOL_SOCKET, SO_KEEPALIVE) != 0 || option(context, SOL_TCP, TCP_USER_TIMEOUT) != 0 {
        let patience = read(context);
        // A full map forgets the oldest.
        let _: Result<(), i32> = PATIENCE.insert(flow, patience, 0);
    }
}

#[inline(always)]
fn note(ctx: &SockoptContext) {
    // SAFETY: as above.
    let (level, name) = unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname) };
    let tcp =
        name == TCP_KEEPIDLE || name == TCP_KEEPINTVL || name == TCP_KEEPCNT || name == TCP_USER_TIMEOUT;
    if !(level == SOL_SOCKET && name == SO_KEEPALIVE) && !(level == SOL_TCP && tcp) {
        return;
    }
    // SAFETY: the context is this program's own.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if PODS.get_ptr(netns).is_none() {
        return;
    }
    let (Some(value), Some((flow, sk))) = (value(ctx), connection(ctx, netns)) else {
        return;
    };
    let mut patience = read(sk.cast());
    match (level, name) {
        (SOL_SOCKET, _) => patience.keepalive = u32::from(value != 0),
        (_, TCP_KEEPIDLE) => patience.idle = value,
        (_, TCP_KEEPINTVL) => patience.interval = value,
        (_, TCP_KEEPCNT) => patience.probes = value,
        _ => patience.user_timeout = value,
    }
    let _: Result<(), i32> = PATIENCE.insert(flow, patience, 0);
}

/// What is about to be set.
#[inline(always)]
fn value(ctx: &SockoptContext) -> Option<u32> {
    // SAFETY: as above.
    let (start, end) = unsafe {
        (
            (*ctx.sockopt).__bindgen_anon_2.optval.cast::<u32>(),
            (*ctx.sockopt).__bindgen_anon_3.optval_end.cast::<u32>(),
        )
    };
    // SAFETY: it is compared with the end before it is read.
    unsafe { if start.add(1) > end { None } else { Some(start.read_volatile()) } }
}

/// The socket's connection, if it has one.
#[inline(always)]
fn connection(ctx: &SockoptContext, netns: u64) -> Option<(Flow, *mut bpf_sock)> {
    // SAFETY: as above; each field of the socket is read by itself, in its own width.
    unsafe {
        let sk = (*ctx.sockopt).__bindgen_anon_1.sk;
        if sk.is_null() {
            return None;
        }
        let state = (&raw const (*sk).state).read_volatile();
        if (&raw const (*sk).protocol).read_volatile() != IPPROTO_TCP
            || state == TCP_CLOSE
            || state == TCP_LISTEN
            || state == TCP_SYN_SENT
        {
            return None;
        }
        // Both families are read, and one is taken then: a read behind a choice may become one at a chosen offset, which the verifier
        // does not take of a socket.
        let (v4_local, v4_remote) =
            ((&raw const (*sk).src_ip4).read_volatile(), (&raw const (*sk).dst_ip4).read_volatile());
        let (v6_local, v6_remote) = (read_v6(&raw const (*sk).src_ip6), read_v6(&raw const (*sk).dst_ip6));
        let (local, remote): (Addr, Addr) = if (&raw const (*sk).family).read_volatile() == AF_INET {
            (mapped(v4_local.to_ne_bytes()), mapped(v4_remote.to_ne_bytes()))
        } else {
            (v6_local, v6_remote)
        };
        let local_port = (&raw const (*sk).src_port).read_volatile();
        let remote_port = u32::from(u16::from_be((&raw const (*sk).dst_port).read_volatile()));
        Some((Flow { netns, remote, local, remote_port, local_port }, sk))
    }
}

/// What is set on the socket behind `context`: a program's own, or a socket.
#[inline(always)]
fn read(context: *mut c_void) -> Patience {
    Patience {
        keepalive: option(context, SOL_SOCKET, SO_KEEPALIVE),
        idle: option(context, SOL_TCP, TCP_KEEPIDLE),
        interval: option(context, SOL_TCP, TCP_KEEPINTVL),
        probes: option(context, SOL_TCP, TCP_KEEPCNT),
        user_timeout: option(context, SOL_TCP, TCP_USER_TIMEOUT),
    }
}

/// One option; 0 on a kernel that does not tell (before Linux 6.1).
#[inline(always)]
fn option(context: *mut c_void, level: i32, name: i32) -> u32 {
    let mut value = 0_u32;
    // SAFETY: the value lives as long as the call, and has four bytes.
    let failed = unsafe { bpf_getsockopt(context, level, name, (&raw mut value).cast(), 4) };
    if failed == 0 { value } else { 0 }
}
