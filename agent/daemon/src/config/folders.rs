//! Folders that the operator names: of the CNI, and those that must be private.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{ConfigError, values::Location};

/// Folders of the CNI, as the node itself sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CniDirs {
    /// Plugins, usually `/opt/cni/bin`.
    pub(crate) bin: PathBuf,
    /// Network configurations, usually `/etc/cni/net.d`.
    pub(crate) conf: PathBuf,
}

impl CniDirs {
    /// Both folders, or `None` if neither is set.
    pub(crate) fn of(bin: Option<Location>, conf: Option<Location>) -> Result<Option<Self>, ConfigError> {
        match (bin, conf) {
            (Some(bin), Some(conf)) => Ok(Some(Self { bin: bin.0, conf: conf.0 })),
            (None, None) => Ok(None),
            (Some(_), None) => {
                Err(ConfigError::Missing { flag: "cni-conf-dir", variable: "AMBIT_CNI_CONF_DIR" })
            }
            (None, Some(_)) => {
                Err(ConfigError::Missing { flag: "cni-bin-dir", variable: "AMBIT_CNI_BIN_DIR" })
            }
        }
    }
}

/// Makes the folder `path`, which `flag` names, so that only this user can use it. One that is there must belong to this
/// user or root, and nobody else may write to it.
pub(crate) fn private_folder(flag: &'static str, path: &Path) -> Result<(), ConfigError> {
    let unusable = |source| ConfigError::Folder { flag, path: path.to_owned(), source };
    let not_safe = |why| ConfigError::Unsafe { flag, path: path.to_owned(), why };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(unusable)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(unusable(error)),
        _ => {}
    }
    let found = fs::metadata(path).map_err(unusable)?;
    if !found.is_dir() {
        return Err(unusable(io::ErrorKind::NotADirectory.into()));
    }
    let owner = found.uid();
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(not_safe(format!("it belongs to user {owner}, who could exchange what is in it")));
    }
    if found.mode() & 0o022 != 0 {
        let mode = found.mode() & 0o7777;
        let path = path.display();
        return Err(not_safe(format!("others may write to it (mode {mode:04o}); run: chmod go-w {path}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn private_folders_are_made_private_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("var/lib/ca");
        private_folder("ca-dir", &made).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&made), 0o700);
        private_folder("ca-dir", &made).unwrap();

        fs::set_permissions(&made, fs::Permissions::from_mode(0o770)).unwrap();
        let error = private_folder("ca-dir", &made).unwrap_err().to_string();
        assert!(error.contains("mode 0770") && error.contains("chmod go-w"), "{error}");

        let plain = dir.path().join("file");
        fs::write(&plain, "").unwrap();
        let error = private_folder("run-dir", &plain).unwrap_err().to_string();
        assert!(error.starts_with("cannot use --run-dir "), "{error}");
    }
}
