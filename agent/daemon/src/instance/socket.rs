//! UNIX sockets in the run directory that only this user may connect to.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

use super::InstanceError;

/// Listens at `path` on a UNIX socket that only this user may connect to, in the place of a socket that may be there:
/// whoever connects meets one or the other.
pub(crate) fn listen(path: PathBuf) -> Result<(UnixListener, SocketFile), InstanceError> {
    if fs::symlink_metadata(&path).is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(InstanceError::InTheWay { path });
    }
    let fresh = path.with_extension("new");
    let bound = || {
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = bind(&fresh)?;
        let inode = fs::symlink_metadata(&fresh)?.ino();
        fs::rename(&fresh, &path)?;
        Ok((listener, SocketFile { path: path.clone(), inode }))
    };
    bound().map_err(|source| InstanceError::RunDir { path: path.clone(), source })
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
    // The file takes over the mode that the socket has when it is bound (unix(7)), so there is no moment in which others
    // could connect.
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(128)?;
    Ok(socket.into())
}

/// Removes the socket's file when dropped, unless another agent's is in its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
