//! What a client sends as HTTP/1, in two pieces: what is read of it is what is forwarded, however it comes.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| ambit::fuzzing::request(input.1, usize::from(input.0)));
