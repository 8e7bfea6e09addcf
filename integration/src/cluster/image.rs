//! The image of every pod of a cluster, made of programs of this machine: no registry, no container engine.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::Programs;
use crate::{
    docker_archive::{self, Entry},
    process,
};

/// Its name. It has a shell, curl, iperf3, the harness's own tools (`/bin/harness tool …`) and etcd, which serves gRPC
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
    add("/bin/harness".to_owned(), std::env::current_exe().context("own executable")?)?;
    add("/bin/etcd".to_owned(), programs.path("etcd"))?;

    let folders = [("tmp/", 0o1777), ("proc/", 0o755), ("sys/", 0o755), ("dev/", 0o755), ("etc/", 0o755)];
    let mut entries =
        folders.map(|(path, mode)| Entry { path: path.to_owned(), mode, content: None }).to_vec();
    for (inside, outside) in files {
        let content = fs::read(&outside).with_context(|| outside.display().to_string())?;
        let path = inside.trim_start_matches('/').to_owned();
        entries.push(Entry { path, mode: 0o755, content: Some(content) });
    }
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Entrypoint": ["/bin/sleep", "infinity"], "Env": ["PATH=/bin"] },
    });
    let image = folder.join("pod-image.tar");
    let archive = docker_archive::archive(POD_IMAGE, config, &entries)?;
    fs::write(&image, archive).with_context(|| image.display().to_string())?;
    Ok(image)
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
