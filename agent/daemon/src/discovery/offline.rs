//! Manifests read once, without an agent: what a folder or a few files make of the mesh, for those who ask before they apply.
//!
//! Promises the same reading that an agent's folder gets. Who makes pods counts as a pod of its template, where no pods of it are
//! there: what is kept in a repository names Deployments.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use ambit_core::discovery::Settings;
use serde_json::{Map, Value, json};

use super::{
    DiscoveryError, Key, Origin, World,
    folder::{documents, file, is_manifest, manifest},
    ledger::Ledger,
};
use documents::{Documents, Syntax};

/// Files that are read.
const MAX_FILES: usize = 10_000;
/// Folders within each other that are looked into.
const MAX_DEPTH: usize = 16;
/// Lists within each other that are looked into.
const MAX_LISTS: usize = 4;

/// What a reading came to.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// Workloads, services, policies, and what is wrong with them.
    pub(crate) world: World,
    /// Where each object stands.
    pub(crate) places: BTreeMap<Key, Origin>,
    /// How many files were read.
    pub(crate) files: usize,
}

/// Reads all manifests at `paths`: files as they are, of folders those that an agent reads, and those of folders within if
/// `recursive`. Fails only if a path cannot be read at all.
pub(crate) fn read_manifests(
    paths: &[PathBuf],
    recursive: bool,
    settings: &Settings,
) -> Result<Reading, DiscoveryError> {
    let mut files = BTreeSet::new();
    for path in paths {
        let failed = |source| DiscoveryError::Folder { folder: path.clone(), source };
        collect(path, recursive, 0, &mut files).map_err(failed)?;
    }
    let mut ledger = Ledger::new(settings.clone());
    let mut texts = Vec::new();
    for path in &files {
        let origin = Origin::file(path);
        match file::read(path) {
            Ok((bytes, _)) => {
                let json = path.extension() == Some(OsStr::new("json"));
                texts.push((origin, documents::read(&bytes, if json { Syntax::Json } else { Syntax::Yaml })));
            }
            Err(reason) => ledger.refuse(&origin, &reason),
        }
    }
    let pods = texts.iter().flat_map(|(_, documents)| &documents.values).flat_map(|value| objects(value, 0));
    let pods: BTreeSet<(String, String)> =
        pods.filter(|object| text(object, "/kind") == "Pod").map(name_of).collect();
    for (origin, Documents { mut values, error }) in texts {
        let made: Vec<Value> = values
            .iter()
            .flat_map(|value| objects(value, 0))
            .filter_map(|object| pod_of(object, &pods))
            .collect();
        values.extend(made);
        manifest::take(&mut ledger, &origin, Documents { values, error }, settings);
    }
    ledger.complete();
    ledger.settle();
    let places = ledger.places().map(|(key, origin)| (key.clone(), origin.clone())).collect();
    Ok(Reading { world: ledger.world(), places, files: files.len() })
}

fn collect(path: &Path, recursive: bool, depth: usize, files: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    if !std::fs::metadata(path)?.is_dir() {
        files.insert(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let name = path.file_name().map(OsStr::to_owned).unwrap_or_default();
        if path.is_dir() {
            if recursive && depth < MAX_DEPTH && !name.as_encoded_bytes().starts_with(b".") {
                collect(&path, recursive, depth + 1, files)?;
            }
        } else if is_manifest(&name) {
            files.insert(path);
        }
        if files.len() > MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} manifests")));
        }
    }
    Ok(())
}

/// The objects of a document: itself, or the items of a list.
fn objects(document: &Value, depth: usize) -> Vec<&Value> {
    match document.get("items").and_then(Value::as_array) {
        Some(items) if text(document, "/kind").ends_with("List") && depth < MAX_LISTS => {
            items.iter().flat_map(|item| objects(item, depth + 1)).collect()
        }
        _ => vec![document],
    }
}

/// A pod as its maker would make it, unless pods of it are there.
fn pod_of(object: &Value, pods: &BTreeSet<(String, String)>) -> Option<Value> {
    let template = match text(object, "/kind") {
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            object.pointer("/spec/template")?
        }
        "CronJob" => object.pointer("/spec/jobTemplate/spec/template")?,
        _ => return None,
    };
    // A ReplicaSet of a Deployment says what that says.
    if object
        .pointer("/metadata/ownerReferences")
        .and_then(Value::as_array)
        .is_some_and(|owners| !owners.is_empty())
    {
        return None;
    }
    let (namespace, name) = name_of(object);
    let start = format!("{name}-");
    let has_pods =
        |(space, pod): &(String, String)| *space == namespace && (pod.starts_with(&start) || *pod == name);
    if name.is_empty() || pods.iter().any(has_pods) {
        return None;
    }
    let metadata = |field: &str| {
        let value = template.pointer(&format!("/metadata/{field}")).cloned();
        value.unwrap_or_else(|| Value::Object(Map::new()))
    };
    Some(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": metadata("labels"),
            "annotations": metadata("annotations"),
        },
        "spec": template.get("spec").cloned().unwrap_or_default(),
        "status": { "phase": "Running" },
    }))
}

fn name_of(object: &Value) -> (String, String) {
    let namespace = match text(object, "/metadata/namespace") {
        "" => "default",
        namespace => namespace,
    };
    (namespace.to_owned(), text(object, "/metadata/name").to_owned())
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests;
