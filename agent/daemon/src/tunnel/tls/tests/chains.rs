//! Chains that a bad peer has filled up.

use super::*;

#[test]
fn a_chain_that_is_filled_up_hides_no_revocation_and_one_too_long_is_not_searched() {
    let (from, to) = (*NOW - HOUR, *NOW + HOUR);
    let (leaf, key) = CA.leaf(&[CART], from, to, |params| params.serial_number = Some(7.into()));
    let revocations = Arc::new(Revocations::parse(&CA.revocation_list(&[7], from, to)).unwrap());
    let rules = Arc::new(PeerRules { revocations, ..PeerRules::default() });
    let svid = || CA.svid(WEB, from, to);
    let settings = settings(PostQuantum::Offer);
    let web = Credentials::new(Arc::new(svid()), &settings, rules.clone(), FixedClock::new(*NOW)).unwrap();
    for (count, expected) in [
        (0, Reason::CertificateRevoked),
        (4, Reason::CertificateRevoked),
        (5, Reason::CertificateRevoked),
        (6, Reason::CertificateInvalid),
        (60, Reason::CertificateInvalid),
    ] {
        let forged = (0..count).map(|_| TestCa::new("the CA").certificate);
        let chain: Vec<_> = std::iter::once(leaf.clone()).chain(forged).collect();
        let mut bad = svid();
        (bad.chain, bad.key) = (chain.clone(), key.clone_key().into());
        let bad = credentials_of(bad, PostQuantum::Offer, FixedClock::new(*NOW));
        let (reason, text) = refusal(&web, &bad, CART, &Side::Client);
        assert_eq!(reason, expected, "server with {count}: {text}");
        let (reason, text) = refusal(&bad, &web, WEB, &Side::Server);
        assert_eq!(reason, expected, "client with {count}: {text}");
        // A connection from before the revocation, which the same chain has opened.
        let peer = peer_identity(&chain, None, &settings, &PeerRules::default(), *NOW).unwrap();
        assert_eq!(peer.recheck(&CA.trust(), &PeerRules::default(), *NOW), Ok(()));
        let (reason, text) = peer.recheck(&CA.trust(), &rules, *NOW).unwrap_err();
        assert_eq!(reason, Reason::CertificateRevoked, "live with {count}: {text}");
    }
}
