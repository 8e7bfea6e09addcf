//! PEM texts as callers, issuers and operators send them: requests, and certificates down to the identity in them.

#![no_main]
#![allow(dead_code, reason = "the daemon's own files, of which this asks a part")]

#[path = "../../../agent/daemon/src/identity/certificate.rs"]
mod certificate;
#[path = "../../../agent/daemon/src/identity/pem.rs"]
mod pem;
#[path = "../../../agent/daemon/src/identity/request.rs"]
mod request;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(text) = std::str::from_utf8(text) {
        let _: Result<_, _> = request::CheckedRequest::from_pem(text);
    }
    if let Ok(certificates) = pem::certificates(text) {
        assert!((1..=pem::MAX_CERTIFICATES).contains(&certificates.len()));
        for certificate in certificates {
            let _: Result<_, _> = certificate::Leaf::read(&certificate);
            let _: String = certificate::issuer_name(&certificate);
        }
    }
});
