//! Embeds the eBPF object that `cargo xtask` built and named in `AMBIT_EBPF_OBJECT`; without it an empty stub, so that
//! plain `cargo check` needs no BPF toolchain. Has a static binary's relocations packed.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=AMBIT_EBPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("ambit-ebpf");
    match env::var_os("AMBIT_EBPF_OBJECT") {
        Some(object) => {
            println!("cargo:rerun-if-changed={}", PathBuf::from(&object).display());
            fs::copy(&object, &out).expect("the eBPF object named in AMBIT_EBPF_OBJECT can be read");
        }
        None => fs::write(&out, []).expect("OUT_DIR is writable"),
    }
    // A static binary applies them to itself when it starts, and they stay in its memory: a megabyte, or next to nothing. A
    // dynamic one would ask for glibc 2.36. A linker that does not know the option warns and goes on.
    if env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|features| features.contains("crt-static")) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
