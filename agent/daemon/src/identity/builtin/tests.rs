use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    thread,
};

use rcgen::{BasicConstraints, DnType};
use rustls_pki_types::CertificateSigningRequestDer;
use tempfile::TempDir;

use super::*;
use crate::identity::{
    Leaf,
    testing::{FixedClock, id},
};

const WEB: &str = "spiffe://td1/ns/shop/sa/web";
const DAY: Duration = Duration::from_secs(86_400);
const NAMES: [&str; 4] = [CA_KEY, CA_CERT, CERT_CHAIN, ROOT_CERT];

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000)
}

fn open(dir: &Path) -> Result<BuiltinCa, CaError> {
    BuiltinCa::open(dir, "td1".parse().unwrap(), FixedClock::new(now()))
}

/// What the CA answers to a request, as the key store puts it.
fn sign(
    ca: &BuiltinCa,
    der: &CertificateSigningRequestDer<'static>,
    id: &SpiffeId,
    ttl: Duration,
) -> Result<Issued, IssueError> {
    ca.answer(&Csr { id: id.clone(), der: der.clone(), ttl })
}

fn fresh() -> (TempDir, BuiltinCa) {
    let dir = TempDir::new().unwrap();
    let ca = open(&dir.path().join("ca")).unwrap();
    (dir, ca)
}

fn text(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The text of the error that opening `dir` gives.
fn failure(dir: &Path) -> String {
    text(&open(dir).err().expect("it opened"))
}

/// A request with any content.
fn request(
    uris: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateSigningRequestDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    change(&mut params);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().clone()
}

#[test]
fn a_new_ca_is_private_complete_and_found_again() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("deep/ca");
    let first = open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(path.join(CA_KEY)).unwrap().mode() & 0o777, 0o600);
    let mut names: Vec<_> =
        fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [".lock", CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT]);
    let second = open(&path).unwrap();
    assert_eq!(first.roots, second.roots);
    let root = parse(&first.roots[0]).unwrap();
    assert_eq!(uri_names(&root).unwrap(), ["spiffe://td1"]);
    assert_eq!(root.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
    assert_eq!(system_time(root.validity().not_after), now() + root::LIFETIME);
}

#[test]
fn a_leaf_is_what_the_spec_says() {
    let (_dir, ca) = fresh();
    let issued = sign(&ca, &request(&[WEB], |_| ()), &id(WEB), DAY).unwrap();
    assert_eq!((issued.chain.len(), &issued.roots), (1, &ca.roots), "no root in the chain");
    let leaf = Leaf::read(&issued.chain[0]).unwrap();
    assert_eq!((leaf.id, leaf.not_before, leaf.not_after), (id(WEB), now() - BACKDATE, now() + DAY));
    let parsed = parse(&issued.chain[0]).unwrap();
    assert!(parsed.subject().iter().next().is_none());
    assert!(parsed.subject_alternative_name().unwrap().unwrap().critical);
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let again = sign(&ca, &request(&[WEB], |_| ()), &id(WEB), DAY).unwrap();
    assert_ne!(Leaf::read(&again.chain[0]).unwrap().serial, leaf.serial);
    assert_eq!(leaf.serial.len(), 32);
}

#[test]
fn requests_for_anything_else_are_refused() {
    let (_dir, ca) = fresh();
    let cart = "spiffe://td1/ns/shop/sa/cart";
    let foreign = "spiffe://td2/ns/shop/sa/web";
    let dns = || SanType::DnsName("web.shop".try_into().unwrap());
    let mut broken = request(&[WEB], |_| ()).to_vec();
    *broken.last_mut().unwrap() ^= 1;
    let cases = [
        ("another identity", request(&[cart], |_| ()), WEB, DAY),
        ("foreign trust domain", request(&[foreign], |_| ()), foreign, DAY),
        ("two URIs", request(&[WEB, cart], |_| ()), WEB, DAY),
        ("an extra DNS name", request(&[WEB], |params| params.subject_alt_names.push(dns())), WEB, DAY),
        ("no name at all", request(&[], |_| ()), WEB, DAY),
        (
            "a subject",
            request(&[WEB], |params| params.distinguished_name.push(DnType::CommonName, "web")),
            WEB,
            DAY,
        ),
        (
            "a CA",
            request(&[WEB], |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            WEB,
            DAY,
        ),
        ("a broken signature", broken.into(), WEB, DAY),
        ("noise", vec![0x30; 100].into(), WEB, DAY),
        ("too much noise", vec![0x30; 16 * 1024 + 1].into(), WEB, DAY),
        ("no lifetime", request(&[WEB], |_| ()), WEB, Duration::ZERO),
    ];
    for (name, csr, asked, ttl) in cases {
        let outcome = sign(&ca, &csr, &id(asked), ttl);
        assert!(matches!(outcome, Err(IssueError::Refused(_))), "{name}: {outcome:?}");
    }
}

#[test]
fn lifetimes_end_with_the_ca() {
    let dir = TempDir::new().unwrap();
    let clock = FixedClock::new(now());
    let ca = BuiltinCa::open(dir.path(), "td1".parse().unwrap(), clock.clone()).unwrap();
    clock.advance(root::LIFETIME - DAY);
    let issued = sign(&ca, &request(&[WEB], |_| ()), &id(WEB), 30 * DAY).unwrap();
    assert_eq!(Leaf::read(&issued.chain[0]).unwrap().not_after, now() + root::LIFETIME);
    let issued = sign(&ca, &request(&[WEB], |_| ()), &id(WEB), Duration::MAX).unwrap();
    assert_eq!(Leaf::read(&issued.chain[0]).unwrap().not_after, now() + root::LIFETIME);
    clock.advance(DAY);
    let error = sign(&ca, &request(&[WEB], |_| ()), &id(WEB), DAY).unwrap_err();
    assert!(error.to_string().contains("has expired"), "{error}");
    let error = BuiltinCa::open(dir.path(), "td1".parse().unwrap(), clock).err().unwrap().to_string();
    assert!(error.contains(CA_CERT) && error.contains("expired at"), "{error}");
}

#[test]
fn many_that_start_at_once_agree() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ca");
    let starters: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            thread::spawn(move || open(&path).unwrap().roots.to_vec())
        })
        .collect();
    let roots: Vec<_> = starters.into_iter().map(|starter| starter.join().unwrap()).collect();
    assert!(roots.iter().all(|each| each == &roots[0]));
}

#[test]
fn a_crash_leaves_none_or_a_complete_ca() {
    let (dir, ca) = fresh();
    let done = dir.path().join("ca");
    for moved in 0..=NAMES.len() {
        let path = dir.path().join(format!("crash-{moved}"));
        let incoming = path.join(".incoming");
        fs::create_dir_all(&incoming).unwrap();
        for (index, name) in NAMES.iter().enumerate() {
            let to = if index < moved { path.join(name) } else { incoming.join(name) };
            fs::copy(done.join(name), to).unwrap();
        }
        assert_eq!(open(&path).unwrap().roots, ca.roots, "after {moved} files");
        assert!(!incoming.exists());
    }
    for written in 0..=NAMES.len() {
        let path = dir.path().join(format!("early-{written}"));
        let unfinished = path.join(".incoming.tmp");
        fs::create_dir_all(&unfinished).unwrap();
        for name in &NAMES[..written] {
            fs::write(unfinished.join(name), "half").unwrap();
        }
        assert_ne!(open(&path).unwrap().roots, ca.roots, "a new one after {written} files");
        assert!(!unfinished.exists());
    }
}

#[test]
fn a_lock_that_is_held_is_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(".lock");
    let held = files::lock(&path, Duration::ZERO).unwrap();
    let error = files::lock(&path, Duration::from_millis(30)).unwrap_err();
    assert!(matches!(&error, CaError::Locked { .. }) && error.to_string().contains(".lock"), "{error}");
    drop(held);
    files::lock(&path, Duration::ZERO).unwrap();
}

#[test]
fn a_part_of_a_ca_is_not_replaced() {
    for name in NAMES {
        let (dir, _) = fresh();
        let path = dir.path().join("ca");
        fs::remove_file(path.join(name)).unwrap();
        let error = failure(&path);
        assert!(error.contains(&format!("{name} missing")), "{error}");
        assert!(!path.join(name).exists());
    }
}

#[test]
fn bad_content_is_named_with_its_file() {
    let (other_dir, _) = fresh();
    let other = |name: &str| fs::read(other_dir.path().join("ca").join(name)).unwrap();
    let cases: [(&str, Vec<u8>, &str, &str); 9] = [
        (CA_CERT, b"".into(), CA_CERT, "no PEM certificate"),
        (CA_CERT, b"-----BEGIN CERTIFICATE-----\nMIIB\n".into(), CA_CERT, "not readable as PEM"),
        (
            ROOT_CERT,
            b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".into(),
            ROOT_CERT,
            "cannot be read",
        ),
        (CA_KEY, b"nothing".into(), CA_KEY, "no usable private key"),
        (CA_KEY, other(CA_KEY), CA_KEY, "does not belong to ca-cert.pem"),
        (CA_CERT, other(CA_CERT), CA_KEY, "does not belong to ca-cert.pem"),
        (ROOT_CERT, other(ROOT_CERT), ROOT_CERT, "would not be believed"),
        (CERT_CHAIN, vec![b'x'; 2 * 1024 * 1024], CERT_CHAIN, "larger than"),
        (CERT_CHAIN, vec![0xff; 100], CERT_CHAIN, "no PEM certificate"),
    ];
    for (file, content, blamed, problem) in cases {
        let (dir, _) = fresh();
        let path = dir.path().join("ca");
        fs::write(path.join(file), content).unwrap();
        let error = failure(&path);
        assert!(error.contains(blamed) && error.contains(problem), "{file}: {error}");
    }
}

#[test]
fn files_that_are_none_are_refused_at_once() {
    let (dir, _) = fresh();
    let path = dir.path().join("ca");
    let key = path.join(CA_KEY);
    fs::remove_file(&key).unwrap();
    nix::unistd::mkfifo(&key, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(failure(&path).contains("not a regular file"));
    for target in [Path::new("/dev/zero"), &key, dir.path(), Path::new("/nowhere")] {
        fs::remove_file(&key).unwrap();
        symlink(target, &key).unwrap();
        let error = failure(&path);
        assert!(error.contains(CA_KEY), "{}: {error}", target.display());
    }
}

#[test]
fn a_directory_open_to_everyone_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(failure(dir.path()).contains("chmod 700"));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(failure(&file).contains("file"), "a file where a directory should be");
}

#[test]
fn the_ca_of_another_trust_domain_is_refused() {
    let (dir, _) = fresh();
    let path = dir.path().join("ca");
    let error = BuiltinCa::open(&path, "td2".parse().unwrap(), FixedClock::new(now()));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("spiffe://td1") && error.contains(CA_CERT), "{error}");
}

/// A CA as an operator plugs it in: an intermediate under a root kept elsewhere, the chain with the root as Istio writes it.
#[test]
fn a_plugged_in_intermediate_ca_is_delivered_with_its_chain() {
    let dir = TempDir::new().unwrap();
    let root_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&root_key).unwrap();
    let root_issuer = rcgen::Issuer::new(params.clone(), root_key);
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    params.not_after = OffsetDateTime::from(now() + DAY);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let intermediate = params.signed_by(&key, &root_issuer).unwrap();
    fs::write(dir.path().join(CA_CERT), intermediate.pem()).unwrap();
    fs::write(dir.path().join(CA_KEY), key.serialize_pem()).unwrap();
    fs::write(dir.path().join(CERT_CHAIN), intermediate.pem() + &root.pem()).unwrap();
    fs::write(dir.path().join(ROOT_CERT), root.pem()).unwrap();

    let ca = open(dir.path()).unwrap();
    let issued = sign(&ca, &request(&[WEB], |_| ()), &id(WEB), 2 * DAY).unwrap();
    assert_eq!(issued.chain[1..], [intermediate.der().clone()]);
    assert_eq!(issued.roots, [root.der().clone()]);
    assert_eq!(Leaf::read(&issued.chain[0]).unwrap().not_after, now() + DAY);

    fs::write(dir.path().join(CERT_CHAIN), root.pem()).unwrap();
    let error = failure(dir.path());
    assert!(error.contains(CERT_CHAIN) && error.contains("does not hold ca-cert.pem"), "{error}");
}

/// A CA as cert-manager writes it: `tls.crt` with what is above it, `tls.key`, and the roots in `ca.crt`.
#[test]
fn a_plugged_in_ca_may_have_the_names_of_a_tls_secret() {
    let (own, ca) = fresh();
    let dir = TempDir::new().unwrap();
    let plugged_in =
        || BuiltinCa::open_plugged_in(dir.path(), "td1".parse().unwrap(), FixedClock::new(now()));
    for (from, to) in [(CERT_CHAIN, "tls.crt"), (CA_KEY, "tls.key"), (ROOT_CERT, "ca.crt")] {
        let error = text(&plugged_in().err().unwrap());
        assert!(error.contains("missing"), "{error}");
        fs::copy(own.path().join("ca").join(from), dir.path().join(to)).unwrap();
    }
    assert_eq!(plugged_in().unwrap().roots, ca.roots);
    fs::write(dir.path().join("tls.key"), "broken").unwrap();
    let error = text(&plugged_in().err().unwrap());
    assert!(error.contains("tls.key: no usable private key"), "{error}");
    fs::remove_file(dir.path().join("tls.key")).unwrap();
    let error = text(&plugged_in().err().unwrap());
    assert!(error.contains("tls.key missing") && !error.contains(CA_KEY), "{error}");
}
