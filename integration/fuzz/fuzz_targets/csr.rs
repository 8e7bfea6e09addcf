//! Certificate requests as a caller of the CA sends them, DER: no panic, and whatever is taken is for a workload identity and
//! an ECDSA key.

#![no_main]

use ambit::identity::CheckedRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|der: &[u8]| {
    if let Ok(taken) = CheckedRequest::from_der(der) {
        assert!(taken.id.to_string().starts_with("spiffe://"));
        assert!(matches!(taken.public_key.len(), 91 | 120), "a key of {} bytes", taken.public_key.len());
    }
});
