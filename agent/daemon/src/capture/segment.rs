//! A SYN that was taken off, and the packets that answer it: itself once more, a reset, or word that the host cannot be
//! reached. Bytes only; knows no socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ambit_ebpf_common::{ADMITTED_V4, ADMITTED_V6, ADMITTED_V6_HOPS, Knock, ip};

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const HOPS: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
const MIN_TCP_HEADER: usize = 20;
/// How much of a segment an ICMP error quotes: ports and the sequence number (RFC 792).
const QUOTED: usize = 8;

/// A SYN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Syn {
    /// From where.
    pub(super) remote: SocketAddr,
    /// To where.
    pub(super) local: SocketAddr,
    traffic_class: u8,
    /// The TCP header with its options.
    header: Vec<u8>,
}

impl Syn {
    /// As the filter has found it.
    pub(super) fn new(knock: &Knock) -> Option<Self> {
        let len = usize::try_from(knock.len).ok()?;
        let header = knock.header.get(..len).filter(|header| header.len() >= MIN_TCP_HEADER)?;
        let end = |addr, port: u32| Some(SocketAddr::new(ip(addr), u16::try_from(port).ok()?));
        Some(Self {
            remote: end(knock.remote, knock.remote_port)?,
            local: end(knock.local, knock.local_port)?,
            traffic_class: u8::try_from(knock.traffic_class).ok()?,
            header: header.to_vec(),
        })
    }

    /// The initial sequence number: a retransmission has the same, another connection another.
    pub(super) fn sequence(&self) -> u32 {
        u32::from_be_bytes([self.header[4], self.header[5], self.header[6], self.header[7]])
    }

    /// The SYN once more, so that the filter lets it pass.
    pub(super) fn again(&self) -> Vec<u8> {
        let mut header = self.header.clone();
        put_checksum(&mut header, 16, self.remote.ip(), self.local.ip(), TCP);
        let mut packet = match (self.remote.ip(), self.local.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                v4(from, to, self.traffic_class, TCP, ADMITTED_V4 | DONT_FRAGMENT, header.len())
            }
            (from, to) => v6(from, to, self.first_word(ADMITTED_V6), TCP, ADMITTED_V6_HOPS, header.len()),
        };
        packet.append(&mut header);
        packet
    }

    /// What a host on which nothing listens answers (RFC 9293 §3.10.7.1).
    pub(super) fn reset(&self) -> Vec<u8> {
        const RST_ACK: u8 = 0x14;
        let mut header = vec![0; MIN_TCP_HEADER];
        header[0..2].copy_from_slice(&self.local.port().to_be_bytes());
        header[2..4].copy_from_slice(&self.remote.port().to_be_bytes());
        header[8..12].copy_from_slice(&self.sequence().wrapping_add(1).to_be_bytes());
        header[12] = 5 << 4;
        header[13] = RST_ACK;
        put_checksum(&mut header, 16, self.local.ip(), self.remote.ip(), TCP);
        self.back(TCP, header)
    }

    /// What a router answers that cannot reach the host (RFC 792, RFC 4443 §3.1).
    pub(super) fn unreachable(&self) -> Vec<u8> {
        let v4_only = self.local.is_ipv4();
        let (kind, code, protocol) = if v4_only { (3, 1, ICMP) } else { (1, 3, ICMP_V6) };
        let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
        message.append(&mut match (self.remote.ip(), self.local.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut quoted = v4(from, to, self.traffic_class, TCP, DONT_FRAGMENT, self.header.len());
                let sum = checksum(0, &quoted);
                quoted[10..12].copy_from_slice(&sum.to_be_bytes());
                quoted
            }
            (from, to) => v6(from, to, self.first_word(0), TCP, HOPS, self.header.len()),
        });
        message.extend_from_slice(&self.header[..QUOTED]);
        if v4_only {
            let sum = checksum(0, &message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        } else {
            put_checksum(&mut message, 2, self.local.ip(), self.remote.ip(), ICMP_V6);
        }
        self.back(protocol, message)
    }

    /// A packet the other way.
    fn back(&self, protocol: u8, mut payload: Vec<u8>) -> Vec<u8> {
        let mut packet = match (self.local.ip(), self.remote.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => v4(from, to, 0, protocol, DONT_FRAGMENT, payload.len()),
            (from, to) => v6(from, to, 6 << 28, protocol, HOPS, payload.len()),
        };
        packet.append(&mut payload);
        packet
    }

    fn first_word(&self, flow_label: u32) -> u32 {
        6 << 28 | u32::from(self.traffic_class) << 20 | flow_label
    }
}

/// An IPv4 header (RFC 791); the kernel fills in the identification and the checksum.
fn v4(from: Ipv4Addr, to: Ipv4Addr, tos: u8, protocol: u8, fragment: u16, payload: usize) -> Vec<u8> {
    let mut header = vec![0x45, tos];
    header.extend_from_slice(&((20 + payload) as u16).to_be_bytes());
    header.extend_from_slice(&[0, 0]);
    header.extend_from_slice(&fragment.to_be_bytes());
    header.extend_from_slice(&[HOPS, protocol, 0, 0]);
    header.extend_from_slice(&from.octets());
    header.extend_from_slice(&to.octets());
    header
}

/// An IPv6 header (RFC 8200).
fn v6(from: IpAddr, to: IpAddr, first_word: u32, protocol: u8, hops: u8, payload: usize) -> Vec<u8> {
    let mut header = first_word.to_be_bytes().to_vec();
    header.extend_from_slice(&(payload as u16).to_be_bytes());
    header.extend_from_slice(&[protocol, hops]);
    for ip in [from, to] {
        header.extend_from_slice(&wide(ip));
    }
    header
}

fn wide(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Puts the checksum of a segment with its pseudo header (RFC 9293 §3.1, RFC 8200 §8.1) at `at`.
fn put_checksum(segment: &mut [u8], at: usize, from: IpAddr, to: IpAddr, protocol: u8) {
    segment[at..at + 2].fill(0);
    let mut pseudo = Vec::with_capacity(40);
    for ip in [from, to] {
        match ip {
            IpAddr::V4(v4) => pseudo.extend_from_slice(&v4.octets()),
            IpAddr::V6(v6) => pseudo.extend_from_slice(&v6.octets()),
        }
    }
    pseudo.extend_from_slice(&(segment.len() as u32).to_be_bytes());
    pseudo.extend_from_slice(&u32::from(protocol).to_be_bytes());
    let sum = checksum(sum(&pseudo), segment);
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum (RFC 1071), going on from a sum.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start + sum(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2);
    words.map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]))).sum()
}

#[cfg(test)]
mod tests {
    use ambit_ebpf_common::{Origin, addr};

    use super::*;

    fn syn(remote: &str, local: &str) -> Syn {
        let (remote, local): (SocketAddr, SocketAddr) = (remote.parse().unwrap(), local.parse().unwrap());
        let mut header = [0; 60];
        header[0..2].copy_from_slice(&remote.port().to_be_bytes());
        header[2..4].copy_from_slice(&local.port().to_be_bytes());
        header[4..8].copy_from_slice(&0xffff_ffff_u32.to_be_bytes());
        header[12] = 6 << 4;
        header[13] = 2;
        // What loopback leaves of a checksum.
        header[16..18].copy_from_slice(&[0x12, 0x34]);
        header[20..24].copy_from_slice(&[2, 4, 0xff, 0xd7]);
        let knock = Knock {
            remote: addr(remote.ip()),
            local: addr(local.ip()),
            remote_port: remote.port().into(),
            local_port: local.port().into(),
            origin: Origin { addr: [0; 16], port: 0, _pad: 0 },
            traffic_class: 0x28,
            len: 24,
            header,
        };
        Syn::new(&knock).unwrap()
    }

    /// The sum over a segment with its pseudo header is all ones if its checksum is right.
    fn holds(segment: &[u8], from: IpAddr, to: IpAddr, protocol: u8) -> bool {
        let mut pseudo = [wide(from), wide(to)].concat();
        if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
            pseudo = [from.octets(), to.octets()].concat();
        }
        pseudo.extend_from_slice(&(segment.len() as u32).to_be_bytes());
        pseudo.extend_from_slice(&u32::from(protocol).to_be_bytes());
        checksum(sum(&pseudo), segment) == 0
    }

    #[test]
    fn the_same_syn_goes_again_with_the_mark_and_a_checksum() {
        let syn4 = syn("198.18.0.1:40000", "198.18.0.1:600");
        let packet = syn4.again();
        assert_eq!(packet[..2], [0x45, 0x28]);
        assert_eq!(u16::from_be_bytes([packet[6], packet[7]]) & ADMITTED_V4, ADMITTED_V4);
        assert_eq!(packet[40..], [2, 4, 0xff, 0xd7]);
        assert!(holds(&packet[20..], syn4.remote.ip(), syn4.local.ip(), TCP));
        let syn6 = syn("[fd00::1]:40000", "[fd00::1]:600");
        let packet = syn6.again();
        let first = u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]]);
        assert_eq!((first >> 28, first >> 20 & 0xff, first & 0xf_ffff), (6, 0x28, ADMITTED_V6));
        assert_eq!((packet[6], packet[7]), (TCP, ADMITTED_V6_HOPS));
        assert!(holds(&packet[40..], syn6.remote.ip(), syn6.local.ip(), TCP));
    }

    #[test]
    fn a_reset_acknowledges_the_syn_and_nothing_more() {
        for (syn, at) in
            [(syn("198.18.0.9:40000", "198.18.0.1:80"), 20), (syn("[fd00::9]:40000", "[fd00::1]:80"), 40)]
        {
            let packet = syn.reset();
            let segment = &packet[at..];
            assert_eq!(segment.len(), 20);
            assert_eq!(segment[..4], [0, 80, 0x9c, 0x40]);
            // One more than the SYN's number, which was the last.
            assert_eq!(segment[8..12], [0; 4]);
            assert_eq!(segment[13], 0x14);
            assert!(holds(segment, syn.local.ip(), syn.remote.ip(), TCP));
        }
    }

    #[test]
    fn an_unreachable_host_is_told_with_the_ports_of_the_syn() {
        let syn4 = syn("198.18.0.1:40000", "198.18.0.1:600");
        let packet = syn4.unreachable();
        assert_eq!((packet[9], packet[20], packet[21]), (ICMP, 3, 1));
        assert_eq!(checksum(0, &packet[20..]), 0);
        assert_eq!(checksum(0, &packet[28..48]), 0);
        assert_eq!(packet[48..56], syn4.header[..8]);
        let syn6 = syn("[fd00::1]:40000", "[fd00::1]:600");
        let packet = syn6.unreachable();
        assert_eq!((packet[6], packet[40], packet[41]), (ICMP_V6, 1, 3));
        assert!(holds(&packet[40..], syn6.local.ip(), syn6.remote.ip(), ICMP_V6));
        assert_eq!(packet[88..96], syn6.header[..8]);
    }

    #[test]
    fn what_is_no_header_is_no_syn() {
        let knock = |len| Knock {
            remote: [0; 16],
            local: [0; 16],
            remote_port: 1,
            local_port: 1,
            origin: Origin { addr: [0; 16], port: 0, _pad: 0 },
            traffic_class: 0,
            len,
            header: [0; 60],
        };
        for len in [0, 19, 61, u32::MAX] {
            assert_eq!(Syn::new(&knock(len)), None);
        }
    }
}
