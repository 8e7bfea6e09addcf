//! ambit's eBPF programs: they point connections at the agent and tell it where they were going.
//!
//! They redirect and, with the agent away, refuse; they never authorize. A pod that is not enrolled pays one look-up
//! per connect.
#![no_std]
#![expect(unsafe_code, reason = "contexts, helpers and map values are raw pointers that the verifier checks")]
#![expect(clippy::needless_pass_by_value, reason = "the program macros hand contexts over by value")]
#![expect(unreachable_pub, reason = "programs and maps are found by their symbols")]
#![no_main]

mod connect;
mod context;
mod dns;
mod inbound;
mod maps;
mod pacing;
mod park;
mod patience;
mod sockops;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The kernel gives some helpers (bpf_get_netns_cookie with sk_storage) to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
