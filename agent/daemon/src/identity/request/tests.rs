use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::{Rng, SeedableRng, rngs::StdRng};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType, SignatureAlgorithm,
};

use super::*;

const WEB: &str = "spiffe://td1/ns/shop/sa/web";

fn request_with(
    algorithm: &'static SignatureAlgorithm,
    uris: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    change(&mut params);
    let key = KeyPair::generate_for(algorithm).unwrap();
    params.serialize_request(&key).unwrap().der().to_vec()
}

fn request(uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    request_with(&rcgen::PKCS_ECDSA_P256_SHA256, uris, change)
}

fn text(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der))
}

fn checked(der: &[u8]) -> Result<SpiffeId, &'static str> {
    check(&text(der)).map(|request| request.id).map_err(|fault| label(&fault))
}

fn check(text: &str) -> Result<CheckedRequest, RequestFault> {
    CheckedRequest::from_pem(text)
}

fn label(fault: &RequestFault) -> &'static str {
    match fault {
        RequestFault::Request(_) => "request",
        RequestFault::Identity(_) => "identity",
        RequestFault::Signature => "signature",
        RequestFault::Key => "key",
    }
}

#[test]
fn a_request_for_one_identity_is_taken() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
        assert_eq!(checked(&request_with(algorithm, &[WEB], |_| ())), Ok(WEB.parse().unwrap()));
    }
}

#[test]
fn whatever_else_is_in_a_request_refuses_it() {
    let san = |name: SanType| request(&[WEB], |params| params.subject_alt_names.push(name));
    let alone = |name: SanType| request(&[], |params| params.subject_alt_names.push(name));
    let dns = || SanType::DnsName("web.shop".try_into().unwrap());
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("an extra DNS name", san(dns()), "request"),
        ("an extra IP address", san(SanType::IpAddress([10, 0, 0, 1].into())), "request"),
        ("an extra mail address", san(SanType::Rfc822Name("a@b".try_into().unwrap())), "request"),
        ("two URIs", request(&[WEB, WEB], |_| ()), "request"),
        ("a DNS name alone", alone(dns()), "request"),
        ("no name", request(&[], |_| ()), "request"),
        ("another kind of URI", request(&["https://shop/web"], |_| ()), "identity"),
        ("a wildcard", request(&["spiffe://td1/ns/shop/sa/*"], |_| ()), "identity"),
        ("a longer path", request(&["spiffe://td1/ns/shop/sa/web/x"], |_| ()), "identity"),
        (
            "a common name",
            request(&[WEB], |params| params.distinguished_name.push(DnType::CommonName, "web")),
            "request",
        ),
        (
            "CA bits",
            request(&[WEB], |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "request",
        ),
        (
            "a key usage",
            request(&[WEB], |params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]),
            "request",
        ),
        (
            "an extended key usage",
            request(&[WEB], |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "request",
        ),
        (
            "an extension of its own",
            request(&[WEB], |params| {
                params.custom_extensions =
                    vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 311, 1], vec![5, 0])];
            }),
            "request",
        ),
        ("an Ed25519 key", request_with(&rcgen::PKCS_ED25519, &[WEB], |_| ()), "key"),
        ("a P-521 key", request_with(&rcgen::PKCS_ECDSA_P521_SHA512, &[WEB], |_| ()), "key"),
    ];
    for (name, der, reason) in cases {
        assert_eq!(checked(&der), Err(reason), "{name}");
    }
}

#[test]
fn a_request_must_be_signed_by_its_key_and_end_where_it_ends() {
    let good = request(&[WEB], |_| ());
    let at = good.windows(WEB.len()).position(|part| part == WEB.as_bytes()).unwrap();
    let mut renamed = good.clone();
    renamed[at + WEB.len() - 1] = b'c';
    assert_eq!(checked(&renamed), Err("signature"));
    let mut broken = good.clone();
    *broken.last_mut().unwrap() ^= 1;
    assert!(checked(&broken).is_err());
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(checked(&longer), Err("request"));
    assert_eq!(checked(&good[..good.len() - 1]), Err("request"));
    let twice = text(&good).repeat(2);
    assert!(check(&twice).unwrap_err().to_string().contains("not the only one"));
    assert!(check("").unwrap_err().to_string().contains("no PEM block"));
    assert!(check(&"a".repeat(MAX_LENGTH + 1)).unwrap_err().to_string().contains("too long"));
    let key = KeyPair::generate().unwrap().serialize_pem();
    assert!(check(&key).unwrap_err().to_string().contains("no PEM block"));
}

/// Requests that the library here does not make come from openssl.
#[test]
fn keys_of_other_kinds_from_openssl_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, curve, hash, expected) in [
        ("rsa:1024", None, "-sha256", "key"),
        ("rsa:2048", None, "-sha256", "key"),
        ("ec", Some("secp256k1"), "-sha256", "key"),
        ("ec", Some("P-384"), "-sha256", "key"),
        ("ec", Some("P-256"), "-sha1", "key"),
        ("ec", Some("P-256"), "-sha256", "ok"),
    ] {
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["req", "-new", "-nodes", "-subj", "/", hash, "-newkey", kind]);
        if let Some(curve) = curve {
            openssl.args(["-pkeyopt", &format!("ec_paramgen_curve:{curve}")]);
        }
        openssl.args(["-addext", &format!("subjectAltName=critical,URI:{WEB}")]);
        openssl.arg("-keyout").arg(dir.path().join("key")).arg("-out").arg(dir.path().join("csr"));
        let ran = openssl.output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let text = std::fs::read_to_string(dir.path().join("csr")).unwrap();
        let outcome = check(&text).map_or_else(|fault| label(&fault), |_| "ok");
        assert_eq!(outcome, expected, "{kind} {curve:?} {hash}");
    }
}

/// Hostile input: no panic, and no change to a request makes it a good one for something else.
#[test]
fn mutated_requests_are_refused() {
    const ROUNDS: usize = 100_000;
    let good = request(&[WEB], |_| ());
    let good_text = text(&good);
    let id: SpiffeId = WEB.parse().unwrap();
    let mut random = StdRng::seed_from_u64(4);
    for round in 0..ROUNDS {
        let (bytes, is_text) = match round % 2 {
            0 => (mutated(&good, &mut random), false),
            _ => (mutated(good_text.as_bytes(), &mut random), true),
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| match is_text {
            true => check(&String::from_utf8_lossy(&bytes)).map(|request| request.id),
            false => CheckedRequest::from_der(&bytes).map(|request| request.id),
        }));
        match outcome {
            Err(_) => panic!("round {round} panicked on {bytes:02x?}"),
            Ok(Ok(found)) => assert_eq!(found, id, "round {round}: {bytes:02x?}"),
            Ok(Err(_)) => {}
        }
    }
}

fn mutated(good: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..5) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => bytes.truncate(at.max(1)),
            3 => bytes.insert(at, random.random()),
            _ => {
                let to = random.random_range(at..bytes.len().min(at + 16));
                let piece = bytes[at..to].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}
