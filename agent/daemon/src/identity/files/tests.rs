use std::{
    fs,
    time::{Duration, SystemTime},
};

use super::*;
use crate::identity::{
    KeyStore, SystemClock,
    testing::{TestCa, id},
};

const WEB: &str = "spiffe://td1/ns/shop/sa/web";

/// Writes a certificate for `uri` of `ca` into `dir`, certificate first as a careless writer would.
fn write(dir: &Path, ca: &TestCa, uri: &str) {
    let now = SystemTime::now();
    let (leaf, key) = ca.leaf(&[uri], now - Duration::from_secs(60), now + Duration::from_secs(3600), |_| ());
    let pem = |tag: &str, der: &[u8]| ::pem::encode(&::pem::Pem::new(tag, der));
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join(CERTIFICATE), pem("CERTIFICATE", &leaf)).unwrap();
    fs::write(dir.join(KEY), pem("PRIVATE KEY", key.secret_der())).unwrap();
    fs::write(dir.join(ROOTS), pem("CERTIFICATE", &ca.certificate)).unwrap();
}

#[tokio::test]
async fn what_lies_in_the_folder_is_used_and_what_changes_too() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let own = dir.path().join("shop").join("web");
    write(&own, &old, WEB);
    let store = KeyStore::new(
        Arc::new(FilesIssuer::new(dir.path().to_owned())),
        Arc::new(SystemClock),
        Duration::from_secs(3600),
    );
    store.retain([id(WEB)]);
    let first = store.svid(&id(WEB)).await.unwrap();
    assert_eq!(first.trust.roots, std::slice::from_ref(&old.certificate));
    write(&own, &new, WEB);
    let second = loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let svid = store.svid(&id(WEB)).await.unwrap();
        if svid.chain != first.chain {
            break svid;
        }
    };
    assert_eq!(second.trust.roots, std::slice::from_ref(&new.certificate));

    // What does not fit changes nothing, and is told.
    fs::write(own.join(KEY), "no key").unwrap();
    while store.status()[0].last_error.is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = &store.status()[0];
    assert!(status.last_error.as_ref().unwrap().contains("tls.key"), "{:?}", status.last_error);
    assert_eq!(store.svid(&id(WEB)).await.unwrap().chain, second.chain);
}

#[test]
fn one_certificate_in_the_folder_itself_is_for_its_identity_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new("ca");
    write(dir.path(), &ca, WEB);
    assert!(read(dir.path(), &id(WEB)).is_ok());
    // The folder's own roots serve an identity's folder without.
    let other = dir.path().join("shop").join("cart");
    write(&other, &ca, "spiffe://td1/ns/shop/sa/cart");
    fs::remove_file(other.join(ROOTS)).unwrap();
    assert_eq!(read(dir.path(), &id("spiffe://td1/ns/shop/sa/cart")).unwrap().roots, [ca.certificate]);
    let empty = tempfile::tempdir().unwrap();
    let text = read(empty.path(), &id(WEB)).unwrap_err().to_string();
    assert!(text.contains("tls.crt"), "{text}");
}
