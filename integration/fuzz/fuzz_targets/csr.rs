//! Certificate requests as a caller of the CA sends them, DER: no panic, and whatever is taken is for a workload identity and
//! an ECDSA key.

#![no_main]
#![allow(dead_code, reason = "the daemon's own file, of which this asks a part")]

#[path = "../../../agent/daemon/src/identity/request.rs"]
mod request;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|der: &[u8]| {
    if let Ok(taken) = request::CheckedRequest::from_der(der) {
        assert!(taken.id.to_string().starts_with("spiffe://"));
        assert!(matches!(taken.public_key.len(), 91 | 120), "a key of {} bytes", taken.public_key.len());
    }
});
