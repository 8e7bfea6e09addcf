use super::*;

const FAR: &str = "spiffe://td2/ns/shop/sa/web";

/// Our cart, to which the trust domain `td2` with the CA `other` is federated, or not.
fn cart(other: Option<&TestCa>) -> Credentials {
    let federation = other.map_or_else(Federation::default, |other| {
        Federation::default().with("td2".parse().unwrap(), &other.trust().roots).unwrap()
    });
    let rules = PeerRules { federation: Arc::new(federation), ..PeerRules::default() };
    let svid = Arc::new(CA.svid(CART, *NOW - HOUR, *NOW + HOUR));
    Credentials::new(svid, &settings(PostQuantum::Offer), Arc::new(rules), FixedClock::new(*NOW)).unwrap()
}

fn peer(ca: &TestCa, uri: &str) -> Credentials {
    forged(ca.leaf(&[uri], *NOW - HOUR, *NOW + HOUR, |_| ()))
}

#[test]
fn a_root_vouches_for_its_own_trust_domain_only() {
    let other = TestCa::new("the other CA");
    let ours = cart(Some(&other));
    let (_, server) = handshake(&peer(&other, FAR), &ours, CART);
    let shown = server.peer_certificates().unwrap();
    let seen = peer_identity(shown, None, &settings(PostQuantum::Offer), ours.rules(), *NOW).unwrap();
    assert_eq!(seen.id, id(FAR));
    handshake(&ours, &peer(&other, FAR), FAR);
    handshake(&peer(&CA, WEB), &ours, CART);

    for (issuer, uri, why) in [(&other, WEB, "a foreign root for us"), (&*CA, FAR, "our root for others")] {
        let (reason, text) = refusal(&peer(issuer, uri), &ours, CART, &Side::Server);
        assert_eq!(reason, Reason::CertificateUntrusted, "{why}: {text}");
        let (reason, text) = refusal(&ours, &peer(issuer, uri), uri, &Side::Client);
        assert_eq!(reason, Reason::CertificateUntrusted, "{why}: {text}");
    }
}

#[test]
fn without_federation_a_foreign_trust_domain_is_refused() {
    let other = TestCa::new("the other CA");
    let alone = cart(None);
    let by_reason = |peer: &Credentials| refusal(peer, &alone, CART, &Side::Server).0;
    assert_eq!(by_reason(&peer(&other, FAR)), Reason::CertificateUntrusted);
    assert_eq!(by_reason(&peer(&CA, FAR)), Reason::TrustDomain);
}

#[test]
fn a_peer_whose_foreign_root_is_withdrawn_is_not_believed_any_more() {
    let (other, next) = (TestCa::new("the other CA"), TestCa::new("its successor"));
    let ours = cart(Some(&other));
    let (_, server) = handshake(&peer(&other, FAR), &ours, CART);
    let shown = server.peer_certificates().unwrap();
    let seen = peer_identity(shown, None, &settings(PostQuantum::Offer), ours.rules(), *NOW).unwrap();
    let trust = CA.trust();
    assert_eq!(seen.recheck(&trust, ours.rules(), *NOW), Ok(()));
    let (reason, text) = seen.recheck(&trust, cart(Some(&next)).rules(), *NOW).unwrap_err();
    assert_eq!(reason, Reason::RootWithdrawn, "{text}");
}
