//! A set of keys in the first line, and behind it a token: no panic, and nobody but a signed token says what a token says.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| ambit::fuzzing::tokens(text));
