use std::sync::LazyLock;

use super::*;
use crate::identity::testing::TestCa;

const WEB: &str = "spiffe://td1/ns/shop/sa/web";
static NOW: LazyLock<SystemTime> = LazyLock::new(|| UNIX_EPOCH + Duration::from_secs(1_900_000_000));
const HOUR: Duration = Duration::from_secs(3600);

/// A leaf with the serial number 7 of each CA.
fn leaf(ca: &TestCa) -> Vec<CertificateDer<'static>> {
    vec![ca.leaf(&[WEB], *NOW - HOUR, *NOW + HOUR, |params| params.serial_number = Some(7.into())).0]
}

fn roots(cas: &[&TestCa]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    cas.iter().for_each(|ca| roots.add(ca.certificate.clone()).unwrap());
    roots
}

fn reason(lists: &Revocations, chain: &[CertificateDer<'_>], roots: &RootCertStore) -> Option<Reason> {
    lists.check(chain, roots, *NOW).err().map(|refusal| refusal.reason)
}

#[test]
fn what_a_list_names_is_refused_expired_or_not_and_what_none_speaks_of_is_allowed() {
    let (ca, other) = (TestCa::new("ca"), TestCa::new("other"));
    let roots = roots(&[&ca, &other]);
    for next_update in [*NOW + HOUR, *NOW - HOUR / 2] {
        let der = ca.revocation_list(&[7], *NOW - HOUR, next_update);
        let lists = Revocations::parse(&der).unwrap();
        assert_eq!(lists.updates(), [("CN=ca".to_owned(), Some(next_update))]);
        assert_eq!(reason(&lists, &leaf(&ca), &roots), Some(Reason::CertificateRevoked));
        assert_eq!(reason(&lists, &leaf(&other), &roots), None, "no list speaks of it");
    }
    let others = Revocations::parse(&ca.revocation_list(&[8], *NOW - HOUR, *NOW + HOUR)).unwrap();
    assert_eq!(reason(&others, &leaf(&ca), &roots), None);
    assert_eq!(reason(&Revocations::default(), &leaf(&ca), &roots), None);
}

#[test]
fn lists_of_two_issuers_of_one_name_do_not_hide_each_other() {
    let (first, second) = (TestCa::new("ca"), TestCa::new("ca"));
    let roots = roots(&[&first, &second]);
    let pem: String = [&first, &second]
        .map(|ca| ca.revocation_list(&[7], *NOW - HOUR, *NOW + HOUR))
        .map(|der| pem::encode(&pem::Pem::new("X509 CRL", der)))
        .concat();
    let lists = Revocations::parse(pem.as_bytes()).unwrap();
    for ca in [&first, &second] {
        assert_eq!(reason(&lists, &leaf(ca), &roots), Some(Reason::CertificateRevoked));
    }
}

#[test]
fn what_is_no_list_is_an_error() {
    let good = TestCa::new("ca").revocation_list(&[7], *NOW - HOUR, *NOW + HOUR);
    for bad in [&b""[..], b"hello", &good[..good.len() - 1], b"-----BEGIN X509 CRL-----\n"] {
        assert!(Revocations::parse(bad).is_err(), "{bad:?}");
    }
    for _ in 0..5_000 {
        let mut noise = good.clone();
        let at = rand::random_range(0..noise.len());
        noise[at] = rand::random();
        // Must not panic; what it says is the signature's affair.
        let _: Result<_, _> = Revocations::parse(&noise);
    }
}
