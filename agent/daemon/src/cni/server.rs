//! The agent's socket for the plugin, `cni.sock` in its run directory.
//!
//! Promises bounds on clients, sizes and times, and that of two agents during an upgrade the one that came last is asked.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use nix::fcntl::OFlag;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    CniError,
    protocol::{self, ANSWER_LIMIT, Answer, MAX_LINE, NetnsRef, Outcome, Request, socket_path},
};
use crate::instance;

/// Requests served at once; more wait in the kernel's queue. A node starts no more pods at once.
const MAX_REQUESTS: usize = 256;
/// How long a plugin may take to send its request.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Answers the plugin's requests by `handle` until `shutdown`. The socket takes the place of another agent's in one step.
pub(crate) async fn serve<H, F>(
    run_dir: &Path,
    handle: H,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), CniError>
where
    H: Fn(Request, Option<OwnedFd>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send,
{
    let path = socket_path(run_dir);
    let (listener, _file) = instance::listen(path.clone())?;
    let listener = UnixListener::from_std(listener).map_err(CniError::file("listen on", path))?;
    tokio::select! {
        () = accept(listener, handle) => {}
        () = shutdown => {}
    }
    Ok(())
}

async fn accept<H, F>(listener: UnixListener, handle: H)
where
    H: Fn(Request, Option<OwnedFd>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send,
{
    let slots = Arc::new(Semaphore::new(MAX_REQUESTS));
    // Dropping the set ends the requests that are still open.
    let mut requests = JoinSet::new();
    loop {
        while requests.try_join_next().is_some() {}
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handle = handle.clone();
                requests.spawn(async move {
                    let _slot = slot;
                    if let Err(error) = answer(stream, handle).await {
                        tracing::debug!(%error, "a request of the CNI plugin came to nothing");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a request of the CNI plugin");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer<H, F>(mut stream: UnixStream, handle: H) -> io::Result<()>
where
    H: Fn(Request, Option<OwnedFd>) -> F,
    F: Future<Output = Answer> + Send,
{
    let request = timeout(READ_LIMIT, read(&mut stream)).await??;
    let netns = match (&request.netns, stream.peer_cred()?.pid()) {
        (Some(netns), Some(plugin)) => Some(open(netns, plugin)?.into()),
        _ => None,
    };
    let answer = timeout(ANSWER_LIMIT, handle(request, netns))
        .await
        .unwrap_or_else(|_| Answer::saying(Outcome::Unknown, "the ambit agent is overloaded"));
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    timeout(READ_LIMIT, stream.write_all(&line)).await?
}

async fn read(stream: &mut UnixStream) -> io::Result<Request> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut line).await?;
    protocol::read(&line)
}

/// The namespace that the process `plugin` has open, whatever file systems it sees.
fn open(netns: &NetnsRef, plugin: i32) -> io::Result<File> {
    let path = format!("/proc/{plugin}/fd/{}", netns.fd);
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let found = file.metadata()?;
    if (found.dev(), found.ino()) != netns.inode {
        return Err(io::Error::other("the plugin has something else open than it says"));
    }
    Ok(file)
}
