//! Container images without a container engine: what `docker save` writes, with one layer (docker-archive).
//!
//! The same content gives the same bytes.

use std::io;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Something in a layer; it belongs to root and bears no time.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its path, without a slash before it.
    pub path: String,
    /// Its mode.
    pub mode: u32,
    /// What is in it; a folder if `None`.
    pub content: Option<Vec<u8>>,
}

/// Makes the archive of an image that bears the name `reference` and is made of `entries`; `config` is the image's
/// configuration (OCI image specification) but for its layers.
pub fn archive(reference: &str, mut config: Value, entries: &[Entry]) -> Result<Vec<u8>> {
    let layer = tar(entries)?;
    let layer_id = hex(&layer);
    config["rootfs"] = json!({ "type": "layers", "diff_ids": [format!("sha256:{layer_id}")] });
    let config = serde_json::to_vec(&config)?;
    let (config_name, layer_name) = (format!("{}.json", hex(&config)), format!("{layer_id}.tar"));
    let manifest = json!([{ "Config": config_name, "RepoTags": [reference], "Layers": [layer_name] }]);
    let file = |path, content| Entry { path, mode: 0o644, content: Some(content) };
    tar(&[
        file(config_name.clone(), config),
        file(layer_name.clone(), layer),
        file("manifest.json".to_owned(), serde_json::to_vec(&manifest)?),
    ])
}

fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    let write = || -> io::Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        for Entry { path, mode, content } in entries {
            let mut header = tar::Header::new_gnu();
            let kind = if content.is_some() { tar::EntryType::Regular } else { tar::EntryType::Directory };
            let content = content.as_deref().unwrap_or_default();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            header.set_mode(*mode);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            builder.append_data(&mut header, path, content)?;
        }
        builder.into_inner()
    };
    write().context("cannot make a tar archive")
}

fn hex(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use super::*;

    #[test]
    fn the_archive_names_what_it_holds_and_is_the_same_each_time() {
        let entries = [
            Entry { path: "tmp/".to_owned(), mode: 0o1777, content: None },
            Entry { path: "ambit".to_owned(), mode: 0o755, content: Some(b"the binary".to_vec()) },
        ];
        let make = || archive("localhost/x:1", json!({ "architecture": "arm64" }), &entries).unwrap();
        let image = make();
        assert_eq!(image, make());
        let files = unpack(&image);
        let json = |name: &str| serde_json::from_slice::<Value>(&files[name]).unwrap();
        let manifest = &json("manifest.json")[0];
        let config_name = manifest["Config"].as_str().unwrap();
        let layer = &files[manifest["Layers"][0].as_str().unwrap()];
        let config = json(config_name);
        assert_eq!(config_name, format!("{}.json", hex(&files[config_name])));
        assert_eq!(config["architecture"], "arm64");
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(layer)));
        assert_eq!(manifest["RepoTags"][0], "localhost/x:1");
        assert_eq!(unpack(layer)["ambit"], b"the binary");
    }

    fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let mut entry = entry.unwrap();
                assert_eq!(entry.header().mtime().unwrap(), 0);
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().to_str().unwrap().to_owned(), content)
            })
            .collect()
    }
}
