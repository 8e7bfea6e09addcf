//! The container image, without a container engine.
//!
//! The same binary gives the same bytes. For those who have an engine there is `deploy/image/Dockerfile`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::{
    console::Console,
    docker_archive::{self, Entry},
};

/// The user that the image runs as unless it is told otherwise; the chart runs the agent as root.
const USER: &str = "65532:65532";

/// What the image is made of.
#[derive(clap::Args)]
pub struct Args {
    /// The processors it is for.
    #[arg(long)]
    arch: Arch,
    /// The daemon. It must be static.
    #[arg(long)]
    binary: PathBuf,
    /// Where to put the image.
    #[arg(long)]
    output: PathBuf,
}

/// A processor architecture, as images name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Arch {
    Amd64,
    Arm64,
}

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<()> {
    let Args { arch, binary, output } = args;
    write(*arch, binary, output)?;
    let size = fs::metadata(output)?.len();
    let told = format!("{} ({}, {:.1} MB)", output.display(), reference(), size as f64 / 1e6);
    Console::new(false).line(told);
    Ok(())
}

/// The name and tag that the image bears.
fn reference() -> String {
    format!("localhost/ambit:{}", env!("CARGO_PKG_VERSION"))
}

/// Writes the image with `binary` to `output`, in one step.
fn write(arch: Arch, binary: &Path, output: &Path) -> Result<()> {
    let content = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    check(&content, arch).with_context(|| format!("{} cannot be the image's binary", binary.display()))?;
    let mut name = output.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    let archive = archive(content, arch)?;
    fs::File::create(&fresh)
        .and_then(|mut file| file.write_all(&archive))
        .and_then(|()| fs::rename(&fresh, output))
        .with_context(|| format!("cannot write {}", output.display()))
}

fn archive(binary: Vec<u8>, arch: Arch) -> Result<Vec<u8>> {
    let config = json!({
        "architecture": match arch {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
        },
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/ambit"],
            "Env": ["PATH=/"],
            "User": USER,
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "ambit",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image" }],
    });
    let entry = Entry { path: "ambit".to_owned(), mode: 0o755, content: Some(binary) };
    docker_archive::archive(&reference(), config, &[entry])
}

/// Whether `binary` is an ELF executable for `arch` that needs no loader, for the image has none.
fn check(binary: &[u8], arch: Arch) -> Result<()> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| {
        let field = binary.get(at..at + bytes).context("it is cut short")?;
        Ok::<_, anyhow::Error>(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    if !binary.starts_with(b"\x7fELF\x02\x01") {
        bail!("it is no 64-bit little-endian ELF file");
    }
    let (machine, name) = match arch {
        Arch::Amd64 => (62, "x86-64"),
        Arch::Arm64 => (183, "64-bit ARM"),
    };
    if number(18, 2)? != machine {
        bail!("it is not for {name}; pass --arch or another --binary");
    }
    let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for entry in 0..count {
        if number(usize::try_from(start + entry * size)?, 4)? == PT_INTERP {
            bail!("it is linked dynamically; cargo xtask build --release makes a static one");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_static_binary_for_the_architecture_will_do() {
        let mut header = vec![0; 64 + 56];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[18] = 62;
        (header[32], header[54], header[56]) = (64, 56, 1);
        header[64] = 1;
        check(&header, Arch::Amd64).unwrap();
        let refusal = |binary: &[u8], arch| check(binary, arch).unwrap_err().to_string();
        assert!(refusal(&header, Arch::Arm64).contains("not for 64-bit ARM"));
        assert!(refusal(b"#!/bin/sh", Arch::Amd64).contains("no 64-bit"));
        assert!(refusal(&header[..40], Arch::Amd64).contains("cut short"));
        header[64] = 3;
        assert!(refusal(&header, Arch::Amd64).contains("dynamically"));
    }
}
