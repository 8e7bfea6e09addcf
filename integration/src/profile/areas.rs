//! What kinds of work a profile is made of: each sample counts for the innermost function that tells.

use std::fmt::Write as _;

use super::stacks::Stacks;

/// Parts of function names that tell the kind of work; the first that fits counts.
const AREAS: [(&str, &[&str]); 9] = [
    (
        "encryption and handshakes",
        &[
            "aes_",
            "aesni",
            "gcm_",
            "ghash",
            "aws_lc",
            "AWS_LC",
            "rustls",
            "ecdsa",
            "ecp_",
            "p256",
            "x25519",
            "curve25519",
            "sha256",
            "sha512",
            "bn_",
            "EVP_",
            "aead",
            "mlkem",
            "hmac",
            "hkdf",
            "webpki",
        ],
    ),
    (
        "copies",
        &[
            "memcpy",
            "memmove",
            "copy_to_iter",
            "copy_from_iter",
            "copy_user",
            "rep_movs",
            "csum_",
            "skb_copy",
            "copyin",
            "copyout",
        ],
    ),
    (
        "allocation",
        &[
            "malloc",
            "calloc",
            "realloc",
            "cfree",
            "_int_free",
            "je_",
            "mi_",
            "kmalloc",
            "kfree",
            "kmem_cache",
            "__slab",
            "__alloc_pages",
            "page_frag",
            "clear_page",
            "free_unref",
            "get_page_from",
            "mimalloc",
            "page_fault",
            "madvise",
        ],
    ),
    (
        "sleeping and waking",
        &[
            "epoll",
            "ep_",
            "schedule",
            "try_to_wake",
            "futex",
            "wake_up",
            "__wake",
            "finish_task_switch",
            "ttwu",
            "select_task",
            "enqueue_task",
            "dequeue_task",
            "pick_next",
            "parking_lot",
            "park",
            "context_switch",
            "eventfd",
        ],
    ),
    (
        "TCP/IP in the kernel",
        &[
            "tcp_",
            "inet_",
            "ip_",
            "__ip_",
            "sock_",
            "sk_",
            "__sk_",
            "skb_",
            "__skb",
            "net_",
            "__net",
            "napi",
            "veth",
            "dev_",
            "__dev",
            "nf_",
            "fib_",
            "loopback",
            "qdisc",
            "neigh",
            "ip6",
            "bpf_",
            "release_sock",
            "lock_sock",
        ],
    ),
    (
        "calls into the kernel",
        &["entry_SYSCALL", "syscall", "do_syscall", "__x64_sys", "fdget", "__fget", "vfs_", "ksys_"],
    ),
    ("the runtime", &["tokio", "mio::"]),
    ("ambit", &["ambit"]),
    ("other code of the kernel", &["_[k]"]),
];

/// The share of each kind.
pub(super) fn told(stacks: &Stacks) -> String {
    let mut shares = vec![0_u64; AREAS.len()];
    let mut rest = 0;
    for (stack, samples) in stacks.iter() {
        match area(stack) {
            Some(area) => shares[area] += samples,
            None => rest += samples,
        }
    }
    let all = stacks.samples().max(1) as f64;
    let names = AREAS.iter().map(|(name, _)| *name).chain(["other"]);
    let mut text = String::new();
    for (name, samples) in names.zip(shares.into_iter().chain([rest])) {
        // Writing into a String does not fail.
        let _ = writeln!(text, "{:>6.1}%  {name}", 100.0 * samples as f64 / all);
    }
    text
}

/// The innermost function with a telling name. One of the kernel that tells nothing is of its caller's kind, as locks are.
fn area(stack: &[String]) -> Option<usize> {
    let kinds = AREAS.len() - 1;
    let telling = |function: &String| {
        AREAS[..kinds].iter().position(|(_, parts)| parts.iter().any(|part| function.contains(part)))
    };
    let functions = stack.get(1..)?;
    let kernel = functions.last().is_some_and(|function| function.ends_with("_[k]"));
    functions.iter().rev().find_map(telling).or(kernel.then_some(kinds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_telling_function_counts() {
        let kind = |stack: &[&str]| {
            let stack: Vec<String> = stack.iter().map(ToString::to_string).collect();
            area(&stack).map(|area| AREAS[area].0)
        };
        assert_eq!(kind(&["t", "ambit::relay", "tcp_sendmsg_[k]", "copy_from_iter_[k]"]), Some("copies"));
        assert_eq!(
            kind(&["t", "ambit::relay", "tcp_sendmsg_[k]", "_raw_spin_lock_[k]"]),
            Some("TCP/IP in the kernel")
        );
        assert_eq!(kind(&["t", "tokio::run", "ambit::relay"]), Some("ambit"));
        assert_eq!(kind(&["t", "strange_[k]"]), Some("other code of the kernel"));
        assert_eq!(kind(&["t", "core::fmt::write"]), None);
    }
}
