//! PEM texts as callers, issuers and operators send them: requests, and certificates down to the identity in them.

#![no_main]

use ambit::identity::{CheckedRequest, Leaf, MAX_CERTIFICATES, certificates, issuer_name};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(text) = std::str::from_utf8(text) {
        let _: Result<_, _> = CheckedRequest::from_pem(text);
    }
    if let Ok(certificates) = certificates(text) {
        assert!((1..=MAX_CERTIFICATES).contains(&certificates.len()));
        for certificate in certificates {
            let _: Result<_, _> = Leaf::read(&certificate);
            let _: String = issuer_name(&certificate);
        }
    }
});
