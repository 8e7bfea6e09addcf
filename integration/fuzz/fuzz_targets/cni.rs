//! Lines between the CNI plugin and the agent: no panic, and what was read is written so that it is read alike.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| ambit::fuzzing::cni_line(line));
