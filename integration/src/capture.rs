//! What was on a wire: tcpdump on an interface, and the questions tests ask of its file.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{netns::Netns, process::Process};

/// A running capture of all TCP on one interface.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

/// The packets of a capture that has ended.
#[derive(Debug)]
pub struct Captured {
    raw: Vec<u8>,
    /// The TCP packets in the order they were seen.
    pub packets: Vec<Packet>,
}

/// One TCP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address and port.
    pub source: (IpAddr, u16),
    /// Destination address and port.
    pub destination: (IpAddr, u16),
    /// The TCP flags, FIN being bit 0.
    pub flags: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Capture {
    /// Starts capturing on `interface` (or `any`) in `netns`; the files are `folder/name.{pcap,log}`. Returns when
    /// packets are being taken.
    pub fn start(netns: &Netns, interface: &str, folder: &Path, name: &str) -> Result<Self> {
        let file = folder.join(format!("{name}.pcap"));
        let log = folder.join(format!("{name}.tcpdump.log"));
        let _ = fs::remove_file(&log);
        let mut command = netns.command("tcpdump");
        command.args([
            "-Z",
            "root",
            "-n",
            "-U",
            "--immediate-mode",
            "-s",
            "0",
            "-B",
            "65536",
            "-i",
            interface,
        ]);
        command.arg("-w").arg(&file).arg("tcp");
        let mut tcpdump = Process::start(&mut command, &log)?;
        tcpdump.wait_for("listening on", Duration::from_secs(10))?;
        Ok(Self { tcpdump, file })
    }

    /// Stops and reads what was taken. A capture that the kernel could not keep up with proves nothing and is an error.
    pub fn stop(mut self) -> Result<Captured> {
        // Packets of the last millisecond are still on their way to tcpdump.
        std::thread::sleep(Duration::from_millis(100));
        self.tcpdump.signal(Signal::SIGINT);
        self.tcpdump.wait(Duration::from_secs(20))?;
        let report = self.tcpdump.output();
        ensure!(report.contains("\n0 packets dropped by kernel"), "the capture is not complete: {report}");
        let raw = fs::read(&self.file).with_context(|| self.file.display().to_string())?;
        let packets = parse(&raw)?;
        Ok(Captured { raw, packets })
    }
}

impl Captured {
    /// Whether `needle` is anywhere in the file, in whatever packet.
    pub fn contains(&self, needle: &str) -> bool {
        find(&self.raw, needle.as_bytes())
    }

    /// Whether any of the packets to or from `port` carries `needle`.
    pub fn carries(&self, port: u16, needle: &str) -> bool {
        self.packets.iter().any(|packet| {
            (packet.source.1 == port || packet.destination.1 == port)
                && find(&packet.payload, needle.as_bytes())
        })
    }

    /// Every port that a connection was opened to, with the address: the SYN packets' destinations, each once.
    pub fn dialled(&self) -> Vec<(IpAddr, u16)> {
        let mut dialled: Vec<_> =
            self.packets.iter().filter(|packet| packet.is_syn()).map(|packet| packet.destination).collect();
        dialled.sort_unstable();
        dialled.dedup();
        dialled
    }

    /// The first bytes that the openers of connections to `destination` sent, one entry a connection.
    pub fn openings(&self, destination: (IpAddr, u16)) -> Vec<&[u8]> {
        let mut seen = Vec::new();
        let mut openings = Vec::new();
        for packet in &self.packets {
            if packet.destination != destination || packet.payload.is_empty() || seen.contains(&packet.source)
            {
                continue;
            }
            seen.push(packet.source);
            openings.push(packet.payload.as_slice());
        }
        openings
    }

    /// Whether `port` answered anyone with a reset.
    pub fn reset_from(&self, port: u16) -> bool {
        self.packets.iter().any(|packet| packet.source.1 == port && packet.flags & 4 != 0)
    }
}

impl Packet {
    fn is_syn(&self) -> bool {
        self.flags & 0x12 == 0x02
    }
}

/// Whether these are the first bytes of a TLS connection: a handshake record with a ClientHello in it.
pub fn is_client_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [22, 3, 1..=3, _, _, 1, ..])
}

/// Whether these are the first bytes of a TLS connection, or whole records of one that began before the capture.
pub fn is_tls(bytes: &[u8]) -> bool {
    is_client_hello(bytes) || matches!(bytes, [23, 3, 3, ..])
}

fn find(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Reads the classic pcap format (libpcap's `pcap-savefile`) as tcpdump writes it on this machine's byte order.
fn parse(raw: &[u8]) -> Result<Vec<Packet>> {
    let word = |at: usize| -> Result<u32> {
        let bytes = raw.get(at..at + 4).context("the capture file ends in the middle of a header")?;
        Ok(u32::from_ne_bytes(bytes.try_into()?))
    };
    ensure!(word(0)? == 0xa1b2_c3d4, "not a pcap file of this machine");
    let skip = match word(20)? {
        1 => 14,
        113 => 16,
        276 => 20,
        other => bail!("link type {other} is not known here"),
    };
    let mut packets = Vec::new();
    let mut at = 24;
    while at < raw.len() {
        let length = word(at + 8)? as usize;
        // A last packet that was being written when tcpdump stopped is cut short; -U makes that rare.
        let Some(frame) = raw.get(at + 16..at + 16 + length) else { break };
        packets.extend(frame.get(skip..).and_then(tcp));
        at += 16 + length;
    }
    Ok(packets)
}

/// The TCP packet in an IP packet without extension headers; anything else is `None`.
fn tcp(ip: &[u8]) -> Option<Packet> {
    let (source, destination, segment): (IpAddr, IpAddr, &[u8]) = match ip.first()? >> 4 {
        4 => {
            let header = usize::from(ip[0] & 15) * 4;
            let end = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
            let v4 = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
            // Segmentation offload can leave the length field at 0.
            let end = if end == 0 { ip.len() } else { end.min(ip.len()) };
            (v4(12)?.into(), v4(16)?.into(), ip.get(header..end)?)
        }
        6 => {
            let length = usize::from(u16::from_be_bytes([*ip.get(4)?, *ip.get(5)?]));
            let v6 = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
            let end = if length == 0 { ip.len() } else { (40 + length).min(ip.len()) };
            (v6(8)?.into(), v6(24)?.into(), ip.get(40..end)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(Packet {
        source: (source, port(0)?),
        destination: (destination, port(2)?),
        flags: *segment.get(13)?,
        payload: segment.get(header..)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(link_type: u32, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut raw = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, link_type] {
            raw.extend(word.to_ne_bytes());
        }
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap();
            for word in [0, 0, length, length] {
                raw.extend(word.to_ne_bytes());
            }
            raw.extend(frame);
        }
        raw
    }

    fn v4_packet(flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 198, 18, 1, 10, 198, 18, 2, 11];
        ip.extend([0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        ip.extend(payload);
        let length = u16::try_from(ip.len()).unwrap().to_be_bytes();
        ip[2..4].copy_from_slice(&length);
        ip
    }

    #[test]
    fn packets_come_out_of_every_link_type_without_padding() {
        for (link_type, header) in [(1, 14), (113, 16), (276, 20)] {
            let mut frame = vec![0; header];
            frame.extend(v4_packet(0x18, b"hello"));
            frame.extend([0; 3]);
            let packets = parse(&file(link_type, &[frame])).unwrap();
            assert_eq!(packets.len(), 1);
            assert_eq!(packets[0].source, ("198.18.1.10".parse().unwrap(), 40_000));
            assert_eq!(packets[0].destination, ("198.18.2.11".parse().unwrap(), 8080));
            assert_eq!(packets[0].payload, b"hello");
        }
    }

    #[test]
    fn openings_and_dialled_ports_are_told_per_connection() {
        let frames =
            [v4_packet(0x02, b""), v4_packet(0x18, &[22, 3, 1, 0, 5, 1, 0]), v4_packet(0x18, b"more")];
        let raw = file(1, &frames.map(|ip| [vec![0; 14], ip].concat()));
        let captured = Captured { packets: parse(&raw).unwrap(), raw };
        let server = ("198.18.2.11".parse().unwrap(), 8080);
        assert_eq!(captured.dialled(), [server]);
        assert_eq!(captured.openings(server).len(), 1);
        assert!(is_client_hello(captured.openings(server)[0]));
        assert!(captured.contains("more") && !captured.contains("less"));
        assert!(captured.carries(8080, "more") && !captured.carries(81, "more"));
    }

    #[test]
    fn a_foreign_file_is_refused() {
        assert!(parse(b"not a capture at all, not a capture").is_err());
        assert!(parse(b"").is_err());
    }
}
