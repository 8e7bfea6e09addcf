//! Congestion control of the legs between an application and the agent of its node, which never leave the pod's network
//! namespace. There is nothing to probe for there: an algorithm that paces, as BBR does, holds bytes back with timers, and
//! costs more than the copy. Legs on the wire, and pods that are not enrolled, keep what they have.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_getsockopt, bpf_setsockopt},
    programs::SockOpsContext,
};

const SOL_TCP: i32 = 6;
const TCP_CONGESTION: i32 = 13;

/// What every kernel has.
const UNPACED: [u8; 8] = *b"reno\0\0\0\0";
/// How the names of those begin that pace.
const PACED: [u8; 3] = *b"bbr";

/// Before the first byte of a connection that stands: once it has begun, pacing stays with it.
#[inline(always)]
pub fn stop(ctx: &SockOpsContext) {
    let mut name = [0_u8; 16];
    // SAFETY: the buffers live as long as the calls, and have as many bytes as is said.
    unsafe {
        let told = bpf_getsockopt(
            ctx.as_ptr(),
            SOL_TCP,
            TCP_CONGESTION,
            name.as_mut_ptr().cast(),
            name.len() as i32,
        );
        if told == 0 && name[0] == PACED[0] && name[1] == PACED[1] && name[2] == PACED[2] {
            let mut unpaced = UNPACED;
            // Where the kernel does not let it, the leg is only slower.
            bpf_setsockopt(
                ctx.as_ptr(),
                SOL_TCP,
                TCP_CONGESTION,
                unpaced.as_mut_ptr().cast(),
                unpaced.len() as i32,
            );
        }
    }
}
