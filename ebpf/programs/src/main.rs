//! ambit's eBPF programs.
fn main() {}
