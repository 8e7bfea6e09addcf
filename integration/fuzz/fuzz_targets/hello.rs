//! The first bytes of inbound connections: no panic, and what they are is not decided anew when more of them come. The first byte
//! says how many of the others come early.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((cut, bytes)) = bytes.split_first() {
        ambit::fuzzing::first_bytes(bytes, bytes.len() * usize::from(*cut) / 255);
    }
});
