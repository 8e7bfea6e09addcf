//! The image of every pod of a cluster, made of programs of this machine: no registry, no container engine.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::Programs;
use crate::process;

/// Its name. It has a shell, curl, iperf3, the harness's own tools (`/bin/xtask tool …`) and etcd, which serves gRPC
/// health checks; it runs the sandboxes of pods too.
pub const POD_IMAGE: &str = "localhost/pod:1";

const FROM_THE_MACHINE: [&str; 8] = ["sh", "sleep", "cat", "ls", "id", "env", "curl", "iperf3"];

/// Writes the image as a docker-archive into `folder`; returns its path.
pub(super) fn pods(programs: &Programs, folder: &Path) -> Result<PathBuf> {
    let mut files = BTreeSet::new();
    let mut add = |inside: String, outside: PathBuf| -> Result<()> {
        for library in libraries(&outside)? {
            files.insert((library.clone(), PathBuf::from(library)));
        }
        files.insert((inside, outside));
        Ok(())
    };
    for program in FROM_THE_MACHINE {
        add(format!("/bin/{program}"), which(program)?)?;
    }
    add("/bin/xtask".to_owned(), std::env::current_exe().context("own executable")?)?;
    add("/bin/etcd".to_owned(), programs.path("etcd"))?;

    let layer = folder.join("layer.tar");
    let mut archive = tar::Builder::new(File::create(&layer).with_context(|| layer.display().to_string())?);
    for (path, mode) in
        [("tmp/", 0o1777), ("proc/", 0o755), ("sys/", 0o755), ("dev/", 0o755), ("etc/", 0o755)]
    {
        append(&mut archive, path, mode, tar::EntryType::Directory, &[])?;
    }
    for (inside, outside) in &files {
        let content = fs::read(outside).with_context(|| outside.display().to_string())?;
        append(&mut archive, inside.trim_start_matches('/'), 0o755, tar::EntryType::Regular, &content)?;
    }
    archive.into_inner()?;
    archive_of(&layer, folder)
}

fn archive_of(layer: &Path, folder: &Path) -> Result<PathBuf> {
    let content = fs::read(layer)?;
    let digest: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Entrypoint": ["/bin/sleep", "infinity"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [POD_IMAGE], "Layers": ["layer.tar"] }]);
    let image = folder.join("pod-image.tar");
    let mut archive = tar::Builder::new(File::create(&image).with_context(|| image.display().to_string())?);
    for (name, content) in [
        ("manifest.json", manifest.to_string().as_bytes()),
        ("config.json", config.to_string().as_bytes()),
        ("layer.tar", &content),
    ] {
        append(&mut archive, name, 0o644, tar::EntryType::Regular, content)?;
    }
    archive.into_inner()?;
    fs::remove_file(layer)?;
    Ok(image)
}

fn append(
    archive: &mut tar::Builder<File>,
    path: &str,
    mode: u32,
    kind: tar::EntryType,
    content: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content).with_context(|| format!("{path} in the image"))
}

/// The shared libraries of a program, and its loader, by the paths at which it looks for them.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let told = process::run(Command::new("ldd").arg(program), std::time::Duration::from_secs(10))?;
    // A static program has none, and ldd calls that a failure.
    let words = told.stdout.split_whitespace();
    Ok(words.filter(|word| word.starts_with('/') && !word.ends_with(':')).map(str::to_owned).collect())
}

fn which(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
    found.with_context(|| format!("there is no {program} on the PATH"))
}
