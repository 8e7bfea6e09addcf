//! Words between two agents of a node while one takes over from the other: no panic, and no word too few hands a node over.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|words: &[u8]| ambit::fuzzing::handover(words));
