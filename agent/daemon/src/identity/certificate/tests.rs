use rcgen::SanType;

use super::*;
use crate::identity::testing::{TestCa, id};

const WEB: &str = "spiffe://td1/ns/shop/sa/web";

#[test]
fn a_leaf_is_read_with_all_that_counts() {
    let (from, to) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000), Duration::from_secs(60));
    let (certificate, key) = TestCa::new("ca").leaf(&[WEB], from, from + to, |params| {
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x7f, 0x00, 0x0a]));
        params.subject_alt_names.push(SanType::DnsName("web.shop".try_into().unwrap()));
    });
    let leaf = Leaf::read(&certificate).unwrap();
    assert_eq!((leaf.id, leaf.serial.as_str()), (id(WEB), "7f000a"));
    assert_eq!((leaf.not_before, leaf.not_after), (from, from + to));
    assert_eq!(leaf.public_key, crate::identity::key::PrivateKey::from(key).public_key().unwrap());
}

#[test]
fn a_chain_is_bounded_by_number_and_size() {
    let now = SystemTime::now();
    let ca = TestCa::new("ca");
    let (leaf, _) = ca.leaf(&[WEB], now, now, |_| ());
    let chain = |others: usize| check_chain(&leaf, &vec![ca.certificate.clone(); others]);
    assert_eq!(chain(0), Ok(()));
    assert_eq!(chain(MAX_CHAIN - 1), Ok(()));
    assert!(chain(MAX_CHAIN).unwrap_err().to_string().contains("7 certificates (at most 6)"));
    let large = CertificateDer::from(vec![0x30; MAX_CERTIFICATE + 1]);
    for (first, other) in [(&large, &leaf), (&leaf, &large)] {
        assert!(matches!(check_chain(first, std::slice::from_ref(other)), Err(Fault::Chain(_))));
    }
}

#[test]
fn malformed_names_and_ends_are_refused() {
    let now = SystemTime::now();
    let (certificate, _) = TestCa::new("ca").leaf(&[WEB], now, now, |_| ());
    let mut bytes = certificate.to_vec();
    bytes.push(0);
    assert!(matches!(Leaf::read(&bytes), Err(Fault::Unreadable(_))), "a byte behind the end");
    let at = certificate.windows(WEB.len()).position(|part| part == WEB.as_bytes()).unwrap();
    for (offset, byte) in [(3, 0xff), (17, 0x00), (17, b' '), (17, b'/'), (9, b'T')] {
        let mut bytes = certificate.to_vec();
        bytes[at + offset] = byte;
        assert!(Leaf::read(&bytes).is_err(), "{byte:#x} at {offset}");
    }
    assert!(matches!(Leaf::read(&vec![0x30; MAX_CERTIFICATE + 1]), Err(Fault::Unreadable(_))));
}
