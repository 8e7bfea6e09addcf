use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::*;
use crate::identity::{
    svid::PendingKey,
    testing::{TestCa, id},
};

const WEB: &str = "spiffe://td1/ns/shop/sa/web";

fn text(certificates: &[&CertificateDer<'static>]) -> String {
    certificates.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref()))).collect()
}

fn read(elements: &[String]) -> Result<Issued, IssueError> {
    read_answer(&id(WEB), &IstioCertificateResponse { cert_chain: elements.to_vec() })
}

#[test]
fn the_last_element_is_the_bundle_and_may_hold_several_roots() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let now = SystemTime::now();
    let (leaf, _) = new.leaf(&[WEB], now, now + CALL_TIMEOUT, |_| ());
    let bundle = text(&[&old.certificate, &new.certificate]);
    let issued = read(&[text(&[&leaf]), bundle.clone()]).unwrap();
    assert_eq!(issued.chain, std::slice::from_ref(&leaf));
    assert_eq!(issued.roots, [old.certificate.clone(), new.certificate.clone()]);

    let middle = TestCa::new("middle").certificate;
    // istiod puts the whole of cert-chain.pem into one element, the root included.
    for elements in [
        vec![text(&[&leaf]), text(&[&middle]), text(&[&new.certificate]), bundle.clone()],
        vec![text(&[&leaf]), text(&[&middle, &new.certificate]), bundle.clone()],
    ] {
        assert_eq!(read(&elements).unwrap().chain, [leaf.clone(), middle.clone()]);
    }
}

#[test]
fn answers_of_another_shape_are_unusable() {
    let ca = TestCa::new("ca");
    let now = SystemTime::now();
    let (leaf, _) = ca.leaf(&[WEB], now, now + CALL_TIMEOUT, |_| ());
    let (other, _) = ca.leaf(&["spiffe://td1/ns/shop/sa/cart"], now, now + CALL_TIMEOUT, |_| ());
    let (leaf, other, root) = (text(&[&leaf]), text(&[&other]), text(&[&ca.certificate]));
    for (name, elements, problem) in [
        ("nothing", vec![], "0 elements"),
        ("no roots", vec![leaf.clone()], "1 elements"),
        ("too many", vec![leaf.clone(); MAX_ELEMENTS + 1], "17 elements"),
        ("roots alone", vec![root.clone(), root.clone()], "no certificate but roots"),
        ("an empty bundle", vec![leaf.clone(), String::new()], "its roots: holds no PEM"),
        ("noise", vec!["noise".into(), root.clone()], "no PEM"),
        ("too many roots", vec![leaf.clone(), root.repeat(65)], "more than 64"),
        ("another's", vec![other, root.clone()], "got a certificate for spiffe://td1/ns/shop/sa/cart"),
    ] {
        let error = read(&elements).unwrap_err();
        assert!(
            matches!(error, IssueError::Unusable(_)) && error.to_string().contains(problem),
            "{name}: {error}"
        );
    }
}

#[test]
fn a_host_that_is_no_name_is_refused_at_once() {
    let settings = IstioSettings {
        host: "not a host".into(),
        port: 1,
        server_name: None,
        root: "/r".into(),
        token_file: None,
        cluster_id: "Kubernetes".into(),
    };
    assert_eq!(IstioIssuer::new(settings.clone(), None).err().unwrap(), "not a host");
    assert!(IstioIssuer::new(IstioSettings { host: "::1".into(), ..settings }, None).is_ok());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_before_the_published_roots_are_known() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "token").unwrap();
    let settings = IstioSettings {
        host: "127.0.0.1".into(),
        port: 1,
        server_name: None,
        root: dir.path().join("none"),
        token_file: Some(dir.path().join("token")),
        cluster_id: "Kubernetes".into(),
    };
    let issuer = IstioIssuer::new(settings, Some(PublishedRoots::default())).unwrap();
    let pending = PendingKey::generate(id(WEB), CALL_TIMEOUT).unwrap();
    let error = issuer.issue(pending.csr).await.unwrap_err().to_string();
    assert!(error.contains("have not been read yet"), "{error}");
}
