//! Manifests of Kubernetes objects, two versions of one file divided by a line `%%`: no panic, and nothing is left once it is gone.

#![no_main]

use libfuzzer_sys::fuzz_target;

const DIVIDER: &[u8] = b"\n%%\n";

fuzz_target!(|text: &[u8]| {
    let at = text.windows(DIVIDER.len()).position(|window| window == DIVIDER);
    let (first, then) = at.map_or((text, text), |at| (&text[..at], &text[at + DIVIDER.len()..]));
    ambit::fuzzing::manifest([first, then]);
});
