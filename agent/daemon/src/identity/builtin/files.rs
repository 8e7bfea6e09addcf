//! The four files of a CA in one directory: read as a whole, made as a whole.
//!
//! Promises that processes which start at once agree on one CA, and that a crash leaves either none or a complete one. Leaves
//! to its parent what is in the files.
//!
//! A new CA is written and synced under `.incoming.tmp`, which is renamed to `.incoming`: from then on it exists. Its
//! files are then moved to their places; whoever opens the directory next, under the lock, ends what a crash cut short.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use super::error::CaError;
use crate::files;

pub(super) const CA_CERT: &str = "ca-cert.pem";
pub(super) const CA_KEY: &str = "ca-key.pem";
pub(super) const CERT_CHAIN: &str = "cert-chain.pem";
pub(super) const ROOT_CERT: &str = "root-cert.pem";
const NAMES: [&str; 4] = [CA_KEY, CA_CERT, CERT_CHAIN, ROOT_CERT];

/// The names in a Secret of Kubernetes' own type for certificates, as cert-manager writes it: the CA's certificate and
/// those above it, its key, the roots.
pub(super) const TLS_NAMES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// Which file holds what, for messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) ca_cert: &'static str,
    pub(super) ca_key: &'static str,
    pub(super) cert_chain: &'static str,
    pub(super) root_cert: &'static str,
}

/// Our own layout, which is Istio's.
pub(super) const OWN: Layout =
    Layout { ca_cert: CA_CERT, ca_key: CA_KEY, cert_chain: CERT_CHAIN, root_cert: ROOT_CERT };
const TLS: Layout =
    Layout { ca_cert: TLS_NAMES[0], ca_key: TLS_NAMES[1], cert_chain: TLS_NAMES[0], root_cert: TLS_NAMES[2] };

const LOCK: &str = ".lock";
const INCOMING: &str = ".incoming";
const UNFINISHED: &str = ".incoming.tmp";

/// How long to wait for another process that makes the CA; that takes milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(20);
/// No file of a CA is larger.
const MAX_FILE: u64 = 1024 * 1024;

/// The parts of a CA, PEM.
pub(crate) struct CaFiles {
    pub(super) ca_cert: Vec<u8>,
    pub(super) ca_key: Zeroizing<Vec<u8>>,
    pub(super) cert_chain: Vec<u8>,
    pub(super) root_cert: Vec<u8>,
    pub(super) layout: &'static Layout,
}

impl CaFiles {
    /// Takes a CA from whatever has its parts by name: `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`; or
    /// `tls.crt`, `tls.key`, `ca.crt`. `place` is for messages.
    pub(crate) fn from_named(
        place: &Path,
        mut part: impl FnMut(&str) -> Result<Option<Vec<u8>>, CaError>,
    ) -> Result<Self, CaError> {
        let mut missing: Vec<&'static str> = Vec::new();
        let mut take = |name, missing: &mut Vec<_>| -> Result<Zeroizing<Vec<u8>>, CaError> {
            let found = part(name)?;
            missing.extend(found.is_none().then_some(name));
            Ok(Zeroizing::new(found.unwrap_or_default()))
        };
        let (ca_cert, ca_key) = (take(CA_CERT, &mut missing)?, take(CA_KEY, &mut missing)?);
        let (cert_chain, root_cert) = (take(CERT_CHAIN, &mut missing)?, take(ROOT_CERT, &mut missing)?);
        let files = if missing.len() < NAMES.len() {
            Self {
                ca_cert: ca_cert.to_vec(),
                ca_key,
                cert_chain: cert_chain.to_vec(),
                root_cert: root_cert.to_vec(),
                layout: &OWN,
            }
        } else {
            let [certificate, key, roots] = TLS_NAMES.map(|name| take(name, &mut missing));
            let (certificate, ca_key, roots) = (certificate?, key?, roots?);
            let missing_here = missing.len() - NAMES.len();
            // Nothing of either: our own layout is what messages speak of.
            match missing_here == TLS_NAMES.len() {
                true => missing.truncate(NAMES.len()),
                false => drop(missing.drain(..NAMES.len())),
            }
            Self {
                ca_cert: certificate.to_vec(),
                ca_key,
                cert_chain: certificate.to_vec(),
                root_cert: roots.to_vec(),
                layout: &TLS,
            }
        };
        match missing.is_empty() {
            true => Ok(files),
            false => Err(CaError::Incomplete { dir: place.to_owned(), missing: missing.join(", ") }),
        }
    }

    /// The parts under our own names.
    pub(crate) fn named(&self) -> [(&'static str, &[u8]); 4] {
        [
            (CA_CERT, &self.ca_cert),
            (CA_KEY, &self.ca_key),
            (CERT_CHAIN, &self.cert_chain),
            (ROOT_CERT, &self.root_cert),
        ]
    }
}

/// Reads the CA in `dir`; where there is none, writes the one that `make` gives. The directory itself is made too.
pub(super) fn open(dir: &Path, make: impl FnOnce() -> Result<CaFiles, CaError>) -> Result<CaFiles, CaError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("make directory", dir))?;
    let mode = fs::metadata(dir).map_err(io_error("read", dir))?.mode();
    if mode & 0o002 != 0 {
        return Err(CaError::Content {
            path: dir.to_owned(),
            problem: "everyone may write to this directory".into(),
            advice: "a CA needs one of its own: chmod 700",
        });
    }
    let _lock = match lock(&dir.join(LOCK), LOCK_WAIT) {
        // A CA mounted read-only is complete, or it is none.
        Err(CaError::Io { source, .. }) if is_read_only(&source) && missing(dir)?.is_empty() => None,
        outcome => {
            let lock = outcome?;
            recover(dir)?;
            Some(lock)
        }
    };
    let missing = missing(dir)?;
    if missing.len() == NAMES.len() {
        write(dir, &make()?)?;
    } else if !missing.is_empty() {
        return Err(CaError::Incomplete { dir: dir.to_owned(), missing: missing.join(", ") });
    }
    read_all(dir)
}

/// Reads the CA that somebody else keeps in `dir`. Makes and changes nothing.
pub(super) fn read_plugged_in(dir: &Path) -> Result<CaFiles, CaError> {
    let mode = fs::metadata(dir).map_err(io_error("read", dir))?.mode();
    // The kubelet mounts secrets with mode 1777: everyone may add a file there, nobody may exchange one.
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        return Err(CaError::Content {
            path: dir.to_owned(),
            problem: "everyone may write to this directory".into(),
            advice: "a CA needs one of its own: chmod 700",
        });
    }
    read_all(dir)
}

/// Takes the lock at `path`; it is given back when the file is dropped, also by a crash.
pub(super) fn lock(path: &Path, wait: Duration) -> Result<File, CaError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(io_error("open the lock file", path))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < wait => thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => {
                return Err(CaError::Locked { path: path.to_owned(), waited: wait });
            }
            Err(TryLockError::Error(source)) => return Err(io_error("lock", path)(source)),
        }
    }
}

/// Ends or undoes what a crash left.
fn recover(dir: &Path) -> Result<(), CaError> {
    let (unfinished, incoming) = (dir.join(UNFINISHED), dir.join(INCOMING));
    if exists(&unfinished)? {
        fs::remove_dir_all(&unfinished).map_err(io_error("remove", &unfinished))?;
    }
    if exists(&incoming)? {
        install(dir)?;
    }
    Ok(())
}

fn write(dir: &Path, files: &CaFiles) -> Result<(), CaError> {
    let (unfinished, incoming) = (dir.join(UNFINISHED), dir.join(INCOMING));
    DirBuilder::new().mode(0o700).create(&unfinished).map_err(io_error("make directory", &unfinished))?;
    for (name, content, mode) in [
        (CA_KEY, files.ca_key.as_slice(), 0o600),
        (CA_CERT, &files.ca_cert, 0o644),
        (CERT_CHAIN, &files.cert_chain, 0o644),
        (ROOT_CERT, &files.root_cert, 0o644),
    ] {
        let path = unfinished.join(name);
        OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
            .map_err(io_error("write", &path))?;
    }
    sync(&unfinished)?;
    fs::rename(&unfinished, &incoming).map_err(io_error("rename", &unfinished))?;
    sync(dir)?;
    install(dir)
}

/// Moves the files of a complete new CA to their places. Never replaces a file that somebody else put there.
fn install(dir: &Path) -> Result<(), CaError> {
    let incoming = dir.join(INCOMING);
    for name in NAMES {
        let (from, to) = (incoming.join(name), dir.join(name));
        if !exists(&from)? {
            continue;
        }
        if exists(&to)? {
            return Err(CaError::Content {
                path: to,
                problem: format!("appeared while a new CA was being made in {INCOMING}"),
                advice: "keep one of the two and remove the other",
            });
        }
        fs::rename(&from, &to).map_err(io_error("rename", &from))?;
    }
    sync(dir)?;
    fs::remove_dir(&incoming).map_err(io_error("remove", &incoming))?;
    sync(dir)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, CaError> {
    files::read(path, MAX_FILE).map_err(|error| CaError::Unreadable(error, "put the PEM file in its place"))
}

fn read_all(dir: &Path) -> Result<CaFiles, CaError> {
    CaFiles::from_named(dir, |name| {
        let path = dir.join(name);
        match exists(&path)? {
            true => read(&path).map(|content| Some(content.to_vec())),
            false => Ok(None),
        }
    })
}

fn missing(dir: &Path) -> Result<Vec<&'static str>, CaError> {
    let mut missing = Vec::new();
    for name in NAMES {
        if !exists(&dir.join(name))? {
            missing.push(name);
        }
    }
    Ok(missing)
}

/// Whether there is anything of that name, a dangling link included.
fn exists(path: &Path) -> Result<bool, CaError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

fn sync(dir: &Path) -> Result<(), CaError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaError + use<> {
    let path = PathBuf::from(path);
    move |source| CaError::Io { action, path, source }
}
