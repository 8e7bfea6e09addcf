use domain::base::Name;

use super::*;

const HOST: &str = "api.example.com";

/// A question, with what `change` makes of its message.
fn query(name: &str, kind: Rtype, change: impl FnOnce(&mut domain::base::Header)) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    change(builder.header_mut());
    let mut question = builder.question();
    question.push((name.parse::<Name<Vec<u8>>>().unwrap(), kind)).unwrap();
    question.finish()
}

fn with_opt(query: &[u8], size: u16, version: u8) -> Vec<u8> {
    let mut message = query.to_vec();
    message[11] = 1;
    let [high, low] = size.to_be_bytes();
    message.extend([0, 0, 41, high, low, 0, version, 0x80, 0, 0, 0]);
    message
}

fn known(host: &str) -> Option<Vec<IpAddr>> {
    (host == HOST).then(|| vec!["240.240.0.7".parse().unwrap(), "2001:2::7".parse().unwrap()])
}

fn answered(query: &[u8]) -> Option<Message<Vec<u8>>> {
    to(query, Transport::Udp, known).map(|answer| Message::from_octets(answer).unwrap())
}

fn addresses(answer: &Message<Vec<u8>>) -> Vec<String> {
    let records = answer.answer().unwrap();
    let text = |record: Result<domain::base::ParsedRecord<'_, Vec<u8>>, _>| {
        let record = record.unwrap();
        if let Ok(Some(a)) = record.to_record::<A>() {
            return a.data().addr().to_string();
        }
        record.to_record::<Aaaa>().unwrap().unwrap().data().addr().to_string()
    };
    records.map(text).collect()
}

#[test]
fn a_hosts_addresses_are_told_and_that_it_has_nothing_else() {
    for (kind, expected) in [
        (Rtype::A, &["240.240.0.7"][..]),
        (Rtype::AAAA, &["2001:2::7"]),
        (Rtype::ANY, &["240.240.0.7", "2001:2::7"]),
        (Rtype::TXT, &[]),
        (Rtype::MX, &[]),
        (Rtype::HTTPS, &[]),
    ] {
        let answer = answered(&query("Api.eXample.COM.", kind, |_| {})).unwrap();
        assert_eq!(addresses(&answer), expected, "{kind}");
        let header = answer.header();
        assert_eq!((header.id(), header.rcode(), header.rd()), (0x1234, Rcode::NOERROR, true));
        assert!(header.qr() && header.aa() && header.ra() && !header.tc());
        let question = answer.sole_question().unwrap();
        assert_eq!(question.qname().to_string(), "Api.eXample.COM", "letters are kept as they were asked");
        assert_eq!(answer.header_counts().nscount(), u16::from(expected.is_empty()), "{kind}: SOA");
    }
}

#[test]
fn what_is_no_plain_question_about_a_known_host_is_not_answered() {
    let plain = query(HOST, Rtype::A, |_| {});
    assert!(answered(&plain).is_some());
    let mut two = plain.clone();
    two[5] = 2;
    two.extend_from_slice(&plain[12..]);
    let mut chaos = plain.clone();
    let last = chaos.len() - 1;
    chaos[last] = 3;
    for (what, query) in [
        ("another host", query("other.example.com", Rtype::A, |_| {})),
        ("what a search list makes of it", query("api.example.com.shop.svc.cluster.local", Rtype::A, |_| {})),
        ("part of it", query("example.com", Rtype::A, |_| {})),
        ("the root", query(".", Rtype::A, |_| {})),
        ("a dot within a label", query("api\\.example.com", Rtype::A, |_| {})),
        ("an answer", query(HOST, Rtype::A, |header| header.set_qr(true))),
        ("a notification", query(HOST, Rtype::A, |header| header.set_opcode(Opcode::NOTIFY))),
        ("two questions", two),
        ("another class", chaos),
        ("EDNS of another version", with_opt(&plain, 1232, 1)),
        ("a part of a message", plain[..plain.len() - 1].to_vec()),
        ("nothing", vec![]),
    ] {
        assert!(answered(&query).is_none(), "{what}");
    }
}

#[test]
fn an_answer_is_no_longer_than_the_client_takes() {
    let many = |_: &str| Some((0..100).map(|last| IpAddr::from([198, 18, 0, last])).collect());
    let plain = query(HOST, Rtype::A, |_| {});
    for (query, transport, limit, fits) in [
        (plain.clone(), Transport::Udp, 512, false),
        (with_opt(&plain, 1232, 0), Transport::Udp, 1232, false),
        (with_opt(&plain, 4096, 0), Transport::Udp, 4096, true),
        (with_opt(&plain, 100, 0), Transport::Udp, 512, false),
        (plain.clone(), Transport::Tcp, 65_535, true),
    ] {
        let bytes = to(&query, transport, many).unwrap();
        let answer = Message::from_octets(bytes).unwrap();
        assert!(answer.as_slice().len() <= limit, "{} for {limit}", answer.as_slice().len());
        assert_eq!((answer.header().tc(), answer.header_counts().ancount() == 100), (!fits, fits));
        let opt = answer.opt();
        assert_eq!(opt.is_some(), query.len() > plain.len());
        assert!(opt.is_none_or(|opt| opt.dnssec_ok()));
    }
}
