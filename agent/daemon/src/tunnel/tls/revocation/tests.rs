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

fn roots_of(cas: &[&TestCa]) -> RootCertStore {
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
    let roots = roots_of(&[&ca, &other]);
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
    let roots = roots_of(&[&first, &second]);
    let pem: String = [&first, &second]
        .map(|ca| ca.revocation_list(&[7], *NOW - HOUR, *NOW + HOUR))
        .map(|der| pem::encode(&pem::Pem::new("X509 CRL", der)))
        .concat();
    let lists = Revocations::parse(pem.as_bytes()).unwrap();
    for ca in [&first, &second] {
        assert_eq!(reason(&lists, &leaf(ca), &roots), Some(Reason::CertificateRevoked));
    }
}

/// CAs of that name with keys of their own, which nobody trusts.
fn forged(name: &str, count: usize) -> impl Iterator<Item = CertificateDer<'static>> {
    (0..count).map(move |_| TestCa::new(name).certificate)
}

fn list(ca: &TestCa, serial: u64) -> Vec<u8> {
    ca.revocation_list(&[serial], *NOW - HOUR, *NOW + HOUR)
}

#[test]
fn what_is_put_into_a_chain_hides_no_revocation() {
    let ca = TestCa::new("ca");
    let roots = roots_of(&[&ca]);
    let lists = Revocations::parse(&list(&ca, 7)).unwrap();
    for count in 0..10 {
        let chain: Vec<_> = leaf(&ca).into_iter().chain(forged("ca", count)).collect();
        let Err(refusal) = lists.check(&chain, &roots, *NOW) else { panic!("{count} forged CAs hide it") };
        assert_eq!(refusal.reason, Reason::CertificateRevoked);
        assert!(refusal.text.ends_with("has been revoked"), "{count}: {}", refusal.text);
    }
    // The same beside a certificate that nobody has revoked.
    let (good, _) = ca.leaf(&[WEB], *NOW - HOUR, *NOW + HOUR, |params| params.serial_number = Some(8.into()));
    let chain: Vec<_> = std::iter::once(good).chain(forged("ca", 9)).collect();
    assert_eq!(reason(&lists, &chain, &roots), None);
}

#[test]
fn every_certificate_of_the_path_is_looked_up_in_its_own_issuers_list() {
    for (above, middle) in [("root", "middle"), ("ca", "ca")] {
        let root = TestCa::new(above);
        let middle = root.below(middle, |params| params.serial_number = Some(9.into()));
        let roots = roots_of(&[&root]);
        let chain = [leaf(&middle), vec![middle.certificate.clone()]].concat();
        let good = Revocations::parse(&list(&root, 7)).unwrap();
        assert_eq!(reason(&good, &chain, &roots), None, "the root's 7 is another certificate");
        for (what, list) in [("the leaf", list(&middle, 7)), ("the CA above it", list(&root, 9))] {
            let lists = Revocations::parse(&list).unwrap();
            assert_eq!(reason(&lists, &chain, &roots), Some(Reason::CertificateRevoked), "{what} of {above}");
            let padded: Vec<_> =
                chain.iter().cloned().chain(forged("ca", 3)).chain(forged("root", 3)).collect();
            assert_eq!(reason(&lists, &padded, &roots), Some(Reason::CertificateRevoked), "{what}, padded");
        }
    }
}

#[test]
fn another_path_than_the_revoked_one_is_good() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let key = rcgen::KeyPair::generate().unwrap();
    let again = rcgen::KeyPair::from_pem(&key.serialize_pem()).unwrap();
    let by_old = old.below_with_key("middle", key, |params| params.serial_number = Some(9.into()));
    let by_new = new.below_with_key("middle", again, |params| params.serial_number = Some(9.into()));
    let chain = [leaf(&by_old), vec![by_old.certificate, by_new.certificate]].concat();
    let both = roots_of(&[&old, &new]);
    let lists = |of: &[&TestCa]| {
        let pem = of.iter().map(|ca| pem::encode(&pem::Pem::new("X509 CRL", list(ca, 9))));
        Revocations::parse(pem.collect::<String>().as_bytes()).unwrap()
    };
    assert_eq!(reason(&lists(&[&old]), &chain, &both), None);
    assert_eq!(reason(&lists(&[&new]), &chain, &both), None);
    assert_eq!(reason(&lists(&[&old, &new]), &chain, &both), Some(Reason::CertificateRevoked));
    assert_eq!(reason(&lists(&[&old]), &chain, &roots_of(&[&old])), Some(Reason::CertificateRevoked));
}

#[test]
fn whoever_leads_nowhere_is_refused_and_a_namesakes_list_is_not_ours() {
    let root = TestCa::new("root");
    let roots = roots_of(&[&root]);
    for key in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let namesake = TestCa::with_key("root", rcgen::KeyPair::generate_for(key).unwrap());
        let lists = Revocations::parse(&list(&namesake, 7)).unwrap();
        assert_eq!(reason(&lists, &leaf(&root), &roots), None, "{key:?}");
        let trusted = roots_of(&[&root, &namesake]);
        assert_eq!(reason(&lists, &leaf(&root), &trusted), None, "{key:?}, trusted as well");
        assert_eq!(reason(&lists, &leaf(&namesake), &trusted), Some(Reason::CertificateRevoked), "{key:?}");
    }
    let lists = Revocations::parse(&list(&root, 8)).unwrap();
    let refusal = lists.check(&leaf(&TestCa::new("stranger")), &roots, *NOW).unwrap_err();
    assert!(refusal.text.contains("cannot be told"), "{}", refusal.text);
    assert!(lists.check(&[], &roots, *NOW).is_err(), "no certificate at all");
}

#[test]
fn a_ca_that_may_not_sign_lists_is_taken_by_its_word_all_the_same() {
    let root = TestCa::new("root");
    let no_lists =
        root.below("middle", |params| params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign]);
    let chain = [leaf(&no_lists), vec![no_lists.certificate.clone()]].concat();
    let lists = Revocations::parse(&list(&no_lists, 7)).unwrap();
    assert_eq!(reason(&lists, &chain, &roots_of(&[&root])), Some(Reason::CertificateRevoked));
}

#[test]
fn a_list_that_nobody_can_verify_is_not_taken() {
    let mut list = list(&TestCa::new("ca"), 7);
    // ecdsa-with-SHA256 becomes ecdsa-with-SHA224, in the list and behind it.
    let (sha256, sha224) = ([0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2], 1);
    let places: Vec<_> = (0..list.len() - 8).filter(|at| list[*at..*at + 8] == sha256).collect();
    assert_eq!(places.len(), 2);
    places.iter().for_each(|at| list[at + 7] = sha224);
    assert!(matches!(Revocations::parse(&list), Err(RevocationError::Algorithm(1))));
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
