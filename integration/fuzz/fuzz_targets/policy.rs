//! Policies as YAML, to what they make of connections: no panic, an explanation is what is decided, and what cannot be read opens
//! nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| ambit::fuzzing::policies(text));
