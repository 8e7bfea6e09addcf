//! Set-up, build, demo, test, bench and lint of ambit.

fn main() {}
