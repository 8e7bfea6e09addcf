//! Answers about hosts that the mesh knows. Bytes only.
//!
//! Promises that what is not plainly a question about such a host is left alone.

use std::net::IpAddr;

use domain::{
    base::{
        Message, MessageBuilder, Question, Rtype, Serial, StaticCompressor, Ttl,
        iana::{Class, Opcode, Rcode},
        name::{Label, ParsedName, ToLabelIter as _, ToName as _},
    },
    rdata::{A, Aaaa, Soa},
};

use super::Transport;

/// How long clients may keep an answer, and that there is none.
const TTL: Ttl = Ttl::from_secs(30);
/// What every client takes by UDP (RFC 1035 §4.2.1), and what this end says that it takes (RFC 9715).
const SMALL: usize = 512;
const OWN_SIZE: u16 = 1_232;

/// The answer to `query`, if it is one about a host that has addresses: by its name in lower case, without a dot at the end.
pub(super) fn to(
    query: &[u8],
    transport: Transport,
    addresses: impl FnOnce(&str) -> Option<Vec<IpAddr>>,
) -> Option<Vec<u8>> {
    let query = Message::from_octets(query).ok()?;
    let (header, counts) = (query.header(), query.header_counts());
    if header.qr() || header.opcode() != Opcode::QUERY || counts.ancount() != 0 || counts.nscount() != 0 {
        return None;
    }
    let question = query.sole_question().ok().filter(|question| question.qclass() == Class::IN)?;
    let size = match (query.opt(), counts.arcount()) {
        (None, 0) => None,
        (Some(opt), 1) if opt.version() == 0 => Some(usize::from(opt.udp_payload_size())),
        // Signed, or of another version: not ours to judge.
        _ => return None,
    };
    let host = host_of(question.qname())?;
    let addresses = addresses(&host)?;
    let limit = match transport {
        Transport::Udp => size.unwrap_or(SMALL).max(SMALL),
        Transport::Tcp => usize::from(u16::MAX),
    };
    let dnssec = query.opt().is_some_and(|opt| opt.dnssec_ok());
    build(&query, &question, &addresses, limit, size.map(|_| dnssec))
}

/// The name as hosts are written; `None` for one with letters that no host has.
fn host_of(name: &ParsedName<&[u8]>) -> Option<String> {
    let mut host = String::new();
    for label in name.iter_labels().filter(|label| !label.is_root()) {
        let text = std::str::from_utf8(Label::as_slice(label)).ok()?;
        // A dot within a label is no end of it.
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return None;
        }
        if !host.is_empty() {
            host.push('.');
        }
        host.push_str(&text.to_ascii_lowercase());
    }
    (!host.is_empty()).then_some(host)
}

fn build(
    query: &Message<&[u8]>,
    question: &Question<ParsedName<&[u8]>>,
    addresses: &[IpAddr],
    limit: usize,
    dnssec_ok: Option<bool>,
) -> Option<Vec<u8>> {
    let mut builder = MessageBuilder::from_target(StaticCompressor::new(Vec::new())).ok()?;
    // Room for the OPT record, which goes in last.
    const OPT: usize = 11;
    builder.set_push_limit(if dnssec_ok.is_some() { limit.saturating_sub(OPT) } else { limit });
    let mut answer = builder.start_answer(query, Rcode::NOERROR).ok()?;
    let header = answer.header_mut();
    header.set_aa(true);
    header.set_ra(true);
    header.set_cd(query.header().cd());
    let name = question.qname();
    let wanted = |kind| question.qtype() == kind || question.qtype() == Rtype::ANY;
    let mut truncated = false;
    for ip in addresses {
        let pushed = match ip {
            IpAddr::V4(v4) if wanted(Rtype::A) => answer.push((name, Class::IN, TTL, A::new(*v4))),
            IpAddr::V6(v6) if wanted(Rtype::AAAA) => answer.push((name, Class::IN, TTL, Aaaa::new(*v6))),
            _ => continue,
        };
        if pushed.is_err() {
            truncated = true;
            break;
        }
    }
    if truncated {
        answer.header_mut().set_tc(true);
    }
    let is_empty = answer.counts().ancount() == 0;
    let mut authority = answer.authority();
    if is_empty && !truncated {
        // That there is nothing of this kind can be kept as long as the host itself (RFC 2308 §5).
        let soa = Soa::new(name.to_name::<Vec<u8>>(), name.to_name(), Serial(1), TTL, TTL, TTL, TTL);
        authority.push((name, Class::IN, TTL, soa)).ok()?;
    }
    let mut additional = authority.additional();
    if let Some(dnssec_ok) = dnssec_ok {
        additional.clear_push_limit();
        let option = additional.opt(|opt| {
            opt.set_udp_payload_size(OWN_SIZE);
            opt.set_dnssec_ok(dnssec_ok);
            Ok(())
        });
        option.ok()?;
    }
    Some(additional.finish().into_target())
}

#[cfg(test)]
mod tests;
