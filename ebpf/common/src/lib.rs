//! Keys and values shared by ambit's eBPF programs and its agent: one definition, sizes asserted.
//!
//! Addresses are 16 bytes, IPv4 mapped into IPv6 (RFC 4291 §2.5.5.2), in network byte order; ports are in host byte
//! order. Every byte of padding is explicit and zero, as map keys are compared byte by byte.
#![cfg_attr(not(feature = "user"), no_std)]

/// An address: IPv6, or IPv4 mapped into it.
pub type Addr = [u8; 16];

/// Maps an IPv4 address given in network byte order.
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> Addr {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

/// Whether `addr` stands for an IPv4 address.
#[inline(always)]
pub fn is_mapped(addr: &Addr) -> bool {
    // One comparison: each that the verifier has to follow both ways doubles its work.
    let word = |at: usize| u32::from_be_bytes([addr[at], addr[at + 1], addr[at + 2], addr[at + 3]]);
    word(0) | word(4) | (word(8) ^ 0xffff) == 0
}

/// Whether `addr` is a loopback address.
#[inline(always)]
pub fn is_loopback(addr: &Addr) -> bool {
    const V6: Addr = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    (is_mapped(addr) && addr[12] == 127) || *addr == V6
}

/// The first port that captured connects are pointed at. No ephemeral port is below 1024, so no socket that leaves the
/// choice of its port to the kernel gets one of these and so connects to itself.
pub const REDIRECT_FIRST: u16 = 512;
/// How many ports captured connects are spread over: each has all of the pod's source ports for itself.
pub const REDIRECT_PORTS: u16 = 512;

/// Where a connect to `addr` and `port` is pointed: at the pod's own address, and this port. Different destinations get
/// different ports, but for accidents.
#[inline(always)]
pub fn redirect_port(addr: &Addr, port: u32) -> u16 {
    let mut hash = mixed(port);
    let mut index = 0;
    while index < 16 {
        let word = u32::from_be_bytes([addr[index], addr[index + 1], addr[index + 2], addr[index + 3]]);
        hash = mixed(hash ^ word);
        index += 4;
    }
    REDIRECT_FIRST + (hash % REDIRECT_PORTS as u32) as u16
}

/// Every bit of the result depends on every bit of `word` (the last step of MurmurHash3).
#[inline(always)]
fn mixed(mut word: u32) -> u32 {
    word = (word ^ (word >> 16)).wrapping_mul(0x85eb_ca6b);
    word = (word ^ (word >> 13)).wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

/// The port to try after `port`.
#[inline(always)]
pub fn next_redirect_port(port: u16) -> u16 {
    REDIRECT_FIRST + (port - REDIRECT_FIRST + 1) % REDIRECT_PORTS
}

/// The reserved bit of the IPv4 header's fragment field (RFC 3514 apart, it is always zero): the agent has sent this SYN,
/// which is to be taken.
pub const ADMITTED_V4: u16 = 0x8000;
/// The same in IPv6: traffic class aside, this flow label, and [`ADMITTED_V6_HOPS`].
pub const ADMITTED_V6: u32 = 0x0a_3b17;
/// The hop limit that goes with [`ADMITTED_V6`].
pub const ADMITTED_V6_HOPS: u8 = 197;

/// Where the agent listens in an enrolled pod's network namespace. Keyed by the namespace's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// The pod's IPv4 address, mapped; zero if it has none.
    pub v4: Addr,
    /// The pod's IPv6 address; zero if it has none.
    pub v6: Addr,
    /// The agent's port on the IPv4 address; 0 = none.
    pub v4_port: u16,
    /// The agent's port on the IPv6 address; 0 = none.
    pub v6_port: u16,
    /// Bits: [`CAPTURE_EVERYTHING`] if all that this pod dials is captured, [`CAPTURE_DNS`] if its DNS is.
    pub captures: u32,
}

/// The version of everything in this file. Maps of another version cannot be adopted: whoever changes the layout of a key
/// or value raises it.
pub const LAYOUT: u32 = 5;

/// [`Socket::kind`]: nothing is known of the socket.
pub const SOCKET_NONE: u32 = 0;
/// [`Socket::kind`]: an application's socket whose connect was pointed at the agent.
pub const SOCKET_CAPTURED: u32 = 1;
/// [`Socket::kind`]: the agent's own, on its way to another pod's agent.
pub const SOCKET_TUNNEL: u32 = 2;
/// [`Socket::kind`]: the agent's own, on its way to the application in the same network namespace.
pub const SOCKET_DELIVERY: u32 = 3;
/// [`Socket::kind`]: the kubelet's, on its way to a port that an enrolled pod declares as a probe.
pub const SOCKET_PROBE: u32 = 4;
/// [`Socket::kind`]: the agent's own, to which queries by DNS are pointed.
pub const SOCKET_QUERIES: u32 = 5;

/// What is known of one socket; lives and dies with it (`BPF_MAP_TYPE_SK_STORAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// One of the `SOCKET_*` constants.
    pub kind: u32,
    /// The port of the original destination, of a captured socket.
    pub port: u32,
    /// The address of the destination, of a captured socket or a probe: the one that the application dialled.
    pub addr: Addr,
    /// Cookie of the network namespace that a probe goes to.
    pub netns: u64,
    /// The port that a captured connect was pointed at.
    pub redirect: u32,
    /// Zero.
    pub _pad: u32,
}

/// Something whose connections are captured: an address, or a port of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationKey {
    /// The address; [`ANY_NODE`] of a port that is captured at every node's.
    pub addr: Addr,
    /// The port, [`EVERY_PORT`] or [`NODE`].
    pub port: u32,
}

/// [`DestinationKey::port`]: the address is captured with all its ports.
pub const EVERY_PORT: u32 = 0;
/// [`DestinationKey::port`]: the address is a node's, of which the ports at [`ANY_NODE`] are captured.
pub const NODE: u32 = 0x1_0000;
/// [`DestinationKey::addr`]: whichever node's.
pub const ANY_NODE: Addr = [0; 16];

/// In `SETTINGS`: `DESTINATIONS` lacks what should be in it, so everything that enrolled pods dial is captured. In [`Pod::captures`]:
/// the same for one pod, whose connections to outside are the agent's affair too.
pub const CAPTURE_EVERYTHING: u32 = 1;
/// In [`Pod::captures`]: what the pod sends to port 53 is the agent's affair, while the agent is there.
pub const CAPTURE_DNS: u32 = 2;

/// Where DNS is asked for.
pub const DNS_PORT: u16 = 53;
/// How many resolvers of one family a pod can have at a time whose answers pass through the agent.
pub const RESOLVER_SLOTS: u32 = 4;

/// One of the agent's sockets for queries in a pod. A resolver has a socket for itself, by whose port the programs know which one it
/// is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResolverKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u32,
    /// Below [`RESOLVER_SLOTS`].
    pub slot: u32,
}

/// A port that an enrolled pod of this node declares as a probe. The value is the cookie of the pod's network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeKey {
    /// The pod's address.
    pub addr: Addr,
    /// The port.
    pub port: u32,
}

/// A captured connection as the agent sees it: the namespace's cookie, its source, and the port that it was pointed at.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// The address that the application's socket got.
    pub addr: Addr,
    /// Its port.
    pub port: u32,
    /// The port that it was pointed at, of the same address.
    pub to: u32,
}

/// The original destination of a captured connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The address that the application dialled.
    pub addr: Addr,
    /// The port that it dialled.
    pub port: u32,
    /// Zero.
    pub _pad: u32,
}

/// A connection that the inbound hook must let through to the application. The value tells whose it is: [`FLOW_DELIVERY`]
/// or [`FLOW_PROBE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// Source address of the connection.
    pub remote: Addr,
    /// Destination address: the pod's own.
    pub local: Addr,
    /// Source port.
    pub remote_port: u32,
    /// Destination port.
    pub local_port: u32,
}

/// The agent's own dial to the application.
pub const FLOW_DELIVERY: u32 = 0;
/// The kubelet's probe.
pub const FLOW_PROBE: u32 = 1;

/// How long an application has the kernel wait for the other end of a connection ([`Flow::local`] is the application's end);
/// 0 where it has said nothing, or that is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// Whether keepalive is on (`SO_KEEPALIVE`).
    pub keepalive: u32,
    /// Seconds of silence before the first probe (`TCP_KEEPIDLE`).
    pub idle: u32,
    /// Seconds between probes (`TCP_KEEPINTVL`).
    pub interval: u32,
    /// Probes without an answer that end the connection (`TCP_KEEPCNT`).
    pub probes: u32,
    /// Milliseconds without an acknowledgement that end the connection (`TCP_USER_TIMEOUT`).
    pub user_timeout: u32,
}

/// The mark of the agent's dials to applications; `tcp_fwmark_accept` gives it to the application's end, whose packets a rule
/// then keeps inside the pod's namespace.
pub const DELIVERY_MARK: u32 = 0x0a3b_17ed;

/// Address family 4, in [`ListenerKey::family`].
pub const FAMILY_V4: u32 = 4;
/// Address family 6, in [`ListenerKey::family`].
pub const FAMILY_V6: u32 = 6;

/// The agent's listener of one family in one pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u32,
    /// Zero.
    pub _pad: u32,
}

/// The longest header of a TCP segment.
pub const MAX_TCP_HEADER: usize = 60;

/// A SYN that waits for the agent to know what is to be answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knock {
    /// Its source address.
    pub remote: Addr,
    /// The address that it came to: the pod's own.
    pub local: Addr,
    /// Its source port.
    pub remote_port: u32,
    /// The port that it came to.
    pub local_port: u32,
    /// Where the application wanted to go; all zero if it comes from outside the pod.
    pub origin: Origin,
    /// Type of service, or traffic class.
    pub traffic_class: u32,
    /// Bytes of the TCP header, options included.
    pub len: u32,
    /// The TCP header.
    pub header: [u8; MAX_TCP_HEADER],
}

/// What the programs did in one pod since it was enrolled, in connections.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Outbound, pointed at the agent.
    pub captured: u64,
    /// Outbound, left alone because the destination is not in the mesh.
    pub passed: u64,
    /// Inbound, handed to the agent.
    pub received: u64,
    /// Inbound, the agent's own way to the application.
    pub bypassed: u64,
    /// Inbound, the kubelet's probes on their way to the application.
    pub probes: u64,
    /// Either way, refused because the agent is away or the socket's kind cannot be carried.
    pub refused: u64,
}

const _: () = {
    assert!(size_of::<Pod>() == 40);
    assert!(size_of::<Socket>() == 40);
    assert!(size_of::<Knock>() == 132);
    assert!(size_of::<DestinationKey>() == 20);
    assert!(size_of::<ProbeKey>() == 20);
    assert!(size_of::<OriginKey>() == 32);
    assert!(size_of::<Origin>() == 24);
    assert!(size_of::<Flow>() == 48);
    assert!(size_of::<ListenerKey>() == 16);
    assert!(size_of::<Patience>() == 20);
    assert!(size_of::<ResolverKey>() == 16);
    assert!(size_of::<Counters>() == 48);
};

#[cfg(feature = "user")]
mod user {
    use std::net::{IpAddr, Ipv6Addr};

    use super::{
        Addr, Counters, DestinationKey, Flow, Knock, ListenerKey, Origin, OriginKey, Patience, Pod, ProbeKey,
        ResolverKey, Socket,
    };

    macro_rules! plain {
        ($($name:ident)*) => {
            $(
                // SAFETY: repr(C), only integers, padding explicit: every bit pattern is a value and all bytes are set.
                #[expect(unsafe_code, reason = "aya's marker for plain old data is an unsafe trait")]
                unsafe impl aya::Pod for $name {}
            )*
        };
    }

    plain!(Pod Socket DestinationKey ProbeKey OriginKey Origin Flow Knock ListenerKey Patience Counters ResolverKey);

    /// The 16-byte form of an address.
    pub fn addr(ip: IpAddr) -> Addr {
        match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        }
    }

    /// The address behind the 16-byte form; mapped IPv4 becomes IPv4 again.
    pub fn ip(addr: Addr) -> IpAddr {
        Ipv6Addr::from(addr).to_canonical()
    }
}

#[cfg(feature = "user")]
pub use user::{addr, ip};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_spread_over_ports_below_the_ephemeral_ones() {
        let mut used = [0_u32; REDIRECT_PORTS as usize];
        for host in 0..64_u8 {
            for port in [80, 443, 5432, 8080] {
                let redirect = redirect_port(&mapped([198, 18, 1, host]), port);
                assert!((REDIRECT_FIRST..1024).contains(&redirect));
                assert_ne!(next_redirect_port(redirect), redirect);
                used[usize::from(redirect - REDIRECT_FIRST)] += 1;
            }
        }
        assert_eq!(next_redirect_port(REDIRECT_FIRST + REDIRECT_PORTS - 1), REDIRECT_FIRST);
        assert!(used.iter().all(|count| *count <= 6), "{used:?}");
    }

    #[test]
    fn mapped_addresses_and_no_others_are_ipv4() {
        assert!(is_mapped(&mapped([0; 4])) && is_mapped(&mapped([255; 4])));
        for at in 0..12 {
            let mut addr = mapped([198, 18, 0, 1]);
            addr[at] ^= 1;
            assert!(!is_mapped(&addr), "{addr:?}");
        }
    }
}
