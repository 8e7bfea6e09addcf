//! `ambit`, the node-level ambient tunnel daemon.

fn main() {}
