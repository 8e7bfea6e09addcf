//! Servers that may be somebody else than who is known at their address.

use super::*;

const OTHER: &str = "spiffe://td1/ns/shop/sa/other";

fn expected(instead: &[&str]) -> Expected {
    Expected { identity: id(CART), instead: Some(instead.iter().map(|uri| id(uri)).collect()) }
}

/// What the client says of a server, if it refuses it.
fn judged(client: &Credentials, server: &Credentials, expected: &Expected) -> Result<(), (Reason, String)> {
    let (config, name) = client.client_config(expected);
    let mut near = ClientConnection::new(config, name).unwrap();
    let mut far = ServerConnection::new(server.server_config()).unwrap();
    run(&mut near, &mut far).map_err(|failed| handshake_reason(&failed.1))?;
    let (settings, rules) = (settings(PostQuantum::Offer), PeerRules::default());
    // A resumed session is judged by this alone.
    peer_identity(near.peer_certificates().unwrap(), Some(expected), &settings, &rules, *NOW).map(drop)
}

#[test]
fn a_server_may_be_one_of_those_that_are_named_and_nobody_else() {
    let (web, cart, other) = (credentials(WEB), credentials(CART), credentials(OTHER));
    for named in [&[OTHER][..], &[WEB, OTHER]] {
        assert_eq!(judged(&web, &cart, &expected(named)), Ok(()), "the workload's own, with {named:?}");
        assert_eq!(judged(&web, &other, &expected(named)), Ok(()), "one of {named:?}");
    }
    for (named, words) in [
        (&[][..], "expected was spiffe://td1/ns/shop/sa/cart"),
        (&[WEB], "expected was spiffe://td1/ns/shop/sa/cart or spiffe://td1/ns/shop/sa/web"),
        (&[WEB, WEB], "cart or one of 2 that may be there instead"),
    ] {
        let (reason, text) = judged(&web, &other, &expected(named)).unwrap_err();
        assert_eq!(reason, Reason::IdentityMismatch);
        assert!(text.ends_with(words), "{text}");
    }
}

#[test]
fn naming_an_identity_makes_nobody_believe_its_certificate() {
    let (strange, web) = (TestCa::new("another CA"), credentials(WEB));
    for (uri, issuer, reason) in [
        (OTHER, &strange, Reason::CertificateUntrusted),
        ("spiffe://td9/ns/shop/sa/other", &*CA, Reason::TrustDomain),
    ] {
        let server = forged(issuer.leaf(&[uri], *NOW - HOUR, *NOW + HOUR, |_| ()));
        assert_eq!(judged(&web, &server, &expected(&[uri])).unwrap_err().0, reason, "{uri}");
    }
}

/// What was begun by an address that says more is no ticket for one that says less.
#[test]
fn who_may_be_there_decides_which_tickets_count() {
    let (web, other) = (credentials(WEB), credentials(OTHER));
    for _ in 0..2 {
        assert_eq!(judged(&web, &other, &expected(&[OTHER])), Ok(()));
    }
    let strict = Expected::from(id(CART));
    assert!(!Arc::ptr_eq(&web.client_config(&strict).0, &web.client_config(&expected(&[OTHER])).0));
    assert_eq!(judged(&web, &other, &strict).unwrap_err().0, Reason::IdentityMismatch);
}
