//! The way to the SPIRE agent: its admin socket, and what its refusals mean.

use std::{error::Error as _, io, os::unix::fs::FileTypeExt as _, path::Path, sync::Arc};

use hyper_util::rt::TokioIo;
use nix::unistd::geteuid;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::Trouble;
use crate::error::with_causes;

/// The longest text of SPIRE's that is kept.
const MAX_TEXT: usize = 512;

/// The admin socket of a SPIRE agent, connected to when it is needed.
pub(super) struct Way {
    socket: Arc<Path>,
    pub(super) channel: Channel,
}

impl Way {
    pub(super) fn to(socket: &Path) -> Self {
        let socket: Arc<Path> = socket.into();
        let target = socket.clone();
        // The name is not looked up.
        let endpoint = Endpoint::from_static("http://spire");
        let channel = endpoint.connect_with_connector_lazy(service_fn(move |_| {
            let socket = target.clone();
            async move {
                let stream = UnixStream::connect(&socket).await?;
                check_owner(stream.peer_cred()?.uid(), geteuid().as_raw(), &socket)?;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        }));
        Self { socket, channel }
    }

    /// What the end of a subscription means, and what to do about it.
    pub(super) fn trouble(&self, ended: &Status) -> Trouble {
        let cause = ended.source().map(|cause| format!(": {}", with_causes(cause))).unwrap_or_default();
        let told: String = format!("{}{cause}", ended.message()).chars().take(MAX_TEXT).collect();
        let said = format!("SPIRE says {:?}: {told}", ended.code());
        match ended.code() {
            Code::PermissionDenied => Trouble::Refused(format!("{said} ({})", denied(ended.message()))),
            // The Workload API's socket knows no other service.
            Code::Unimplemented => Trouble::Refused(format!(
                "{said} ({} is no admin socket: the SPIRE agent's socket_path is for workloads; --spire-socket takes its \
                 admin_socket_path)",
                self.socket.display()
            )),
            Code::Unavailable => match self.missing() {
                Some(problem) => Trouble::Unreachable(problem),
                None => Trouble::Unreachable(format!("{said} (at {})", self.socket.display())),
            },
            _ => Trouble::Unreachable(said),
        }
    }

    /// What is wrong with the socket's path, if something is.
    fn missing(&self) -> Option<String> {
        let socket = self.socket.display();
        match std::fs::metadata(&self.socket) {
            Ok(found) if found.file_type().is_socket() => None,
            Ok(_) => Some(format!(
                "{socket} is no socket; --spire-socket takes the admin_socket_path of the SPIRE agent"
            )),
            Err(error) => Some(format!(
                "no SPIRE agent at {socket}: {error}; does it run, and is its admin_socket_path the --spire-socket?"
            )),
        }
    }
}

/// What a refusal of the caller asks of the operator.
fn denied(message: &str) -> &'static str {
    if message.contains("no identity issued") {
        "the ambit agent has no entry of its own: make one for it, and put its SPIFFE ID among the SPIRE agent's \
         authorized_delegates"
    } else {
        "the ambit agent has an entry, but its SPIFFE ID is not among the SPIRE agent's authorized_delegates"
    }
}

/// Whether the process behind the socket may say who our workloads are: the folder may lie where anybody can make one. Only
/// root's and our own may.
pub(super) fn check_owner(owner: u32, own: u32, socket: &Path) -> io::Result<()> {
    if owner == 0 || owner == own {
        return Ok(());
    }
    let problem = format!(
        "{} belongs to a process of user {owner}, who is neither root nor the agent's own; run the SPIRE agent as root",
        socket.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_trouble_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let (absent, file, socket) =
            (dir.path().join("absent"), dir.path().join("file"), dir.path().join("socket"));
        std::fs::write(&file, "").unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let denied = |text: &str| Status::permission_denied(text);
        for (path, ended, expected) in [
            (&socket, denied("no identity issued"), "no entry of its own"),
            (&socket, denied("caller not configured as an authorized delegate"), "authorized_delegates"),
            (&socket, Status::unimplemented("unknown service"), "no admin socket"),
            (&socket, Status::unavailable("broken pipe"), "broken pipe"),
            (&absent, Status::unavailable("transport error"), "No such file"),
            (&file, Status::unavailable("transport error"), "is no socket"),
        ] {
            let trouble = Way::to(path).trouble(&ended);
            assert!(trouble.text().contains(expected), "{ended:?}: {}", trouble.text());
        }
    }

    #[test]
    fn only_root_or_we_ourselves_may_say_who_workloads_are() {
        let socket = Path::new("/tmp/spire-agent/private/admin.sock");
        for (owner, own, good) in
            [(0, 0, true), (0, 1000, true), (1000, 1000, true), (1000, 0, false), (1, 1000, false)]
        {
            let checked = check_owner(owner, own, socket);
            assert_eq!(checked.is_ok(), good, "{owner} for {own}: {checked:?}");
        }
        let text = check_owner(1000, 0, socket).unwrap_err().to_string();
        assert!(text.contains("user 1000") && text.contains("run the SPIRE agent as root"), "{text}");
    }
}
