//! How one agent of a node takes over from another: over a socket in the run directory the new one asks, the old one
//! pauses, the new one leads everything to itself and says so, and the old one lets go of the directory. Whichever dies on
//! the way, the other finds the connection closed, and serves.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    InstanceError,
    draining::LINGER,
    run_dir::{Claim, RunDir, Successor},
    socket::SocketFile,
};

/// The words of the protocol, each one byte. There are no others, and none comes twice.
const ASK: u8 = b'A';
const PAUSED: u8 = b'P';
const DONE: u8 = b'D';

/// How long the old agent may take to pause: it may be in the middle of a round over its pods.
const PAUSE: Duration = Duration::from_secs(30);
/// How long the new agent has to lead everything to itself before the old one takes it back.
const SWAP: Duration = Duration::from_secs(60);
/// How long the new agent itself takes at most: it must have given up before the old one does.
pub(crate) const SWAP_LIMIT: Duration = Duration::from_secs(45);
/// How long the old agent may take to let go of the directory.
const LET_GO: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A successor that has asked. Dropping it refuses.
#[derive(Debug)]
pub(crate) struct Takeover(UnixStream);

impl Takeover {
    /// Tells the successor that this agent touches nothing any more, and waits until it has taken over; `false` if it has
    /// failed, died or taken too long: then everything is still, or again, up to this agent.
    pub(crate) async fn grant(mut self) -> bool {
        if self.0.write_all(&[PAUSED]).await.is_err() {
            return false;
        }
        matches!(timeout(SWAP, self.0.read_u8()).await, Ok(Ok(DONE)))
    }
}

/// Listens for successors of the agent that serves `run_dir`, for ever. One at a time: the others wait in the queue.
pub(crate) async fn serve_successors(
    run_dir: RunDir,
    takeovers: mpsc::Sender<Takeover>,
) -> Result<(), InstanceError> {
    let (listener, _file): (_, SocketFile) = run_dir.listen_for_successors()?;
    let failed = |source| InstanceError::RunDir { path: RunDir::socket_path(run_dir.path()), source };
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    loop {
        let (mut stream, _) = listener.accept().await.map_err(failed)?;
        if asks(&mut stream).await && takeovers.send(Takeover(stream)).await.is_err() {
            return Ok(());
        }
    }
}

/// Whether the peer of a connection is a successor.
async fn asks(stream: &mut UnixStream) -> bool {
    matches!(timeout(Duration::from_secs(1), stream.read_u8()).await, Ok(Ok(ASK)))
}

/// What either side makes of a peer that says `words` and leaves: whether one that serves hands over to it, and whether one that
/// wants to take over believes it to have paused.
pub(crate) async fn hear(words: &[u8]) -> io::Result<(bool, bool)> {
    let peer = async || {
        let (mut near, far) = UnixStream::pair()?;
        near.write_all(words).await?;
        // Its other direction stays open: what it is told need not fail.
        near.shutdown().await?;
        Ok::<_, io::Error>((near, far))
    };
    let (_successor, mut stream) = peer().await?;
    let handed_over = asks(&mut stream).await && Takeover(stream).grant().await;
    let (_predecessor, stream) = peer().await?;
    Ok((handed_over, paused(stream).await.is_ok()))
}

impl Successor {
    /// Asks the agent that serves to pause. From its answer on everything is up to the caller, for [`SWAP_LIMIT`].
    pub(crate) async fn ask(self) -> Result<Granted, InstanceError> {
        let deadline = Instant::now() + PAUSE;
        loop {
            let asked = timeout_at(deadline, self.ask_once()).await;
            match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => return Ok(Granted { successor: self, old: Old::Paused(stream) }),
                // It is about to end, or has died: then everything is up to the caller all the more.
                Err(source) => match self.claim() {
                    Ok(run_dir) => return Ok(Granted { successor: self, old: Old::Gone(run_dir) }),
                    Err(_) if Instant::now() < deadline => sleep(POLL).await,
                    Err(_) => return Err(InstanceError::NotGranted { path: self.socket_path(), source }),
                },
            }
        }
    }

    async fn ask_once(&self) -> io::Result<UnixStream> {
        paused(UnixStream::connect(self.socket_path()).await?).await
    }
}

/// Asks the agent behind `stream` to pause; the stream is back once it has.
async fn paused(mut stream: UnixStream) -> io::Result<UnixStream> {
    stream.write_all(&[ASK]).await?;
    match stream.read_u8().await? {
        PAUSED => Ok(stream),
        other => Err(io::Error::other(format!("an unknown answer, {other}"))),
    }
}

/// The run directory at `path` back for the agent of `node` that has handed it over, if the agent that was to have it has
/// died before it did; waits a moment for it.
pub(crate) async fn reclaim(path: &Path, node: &str) -> Option<RunDir> {
    let claimed = async {
        loop {
            match RunDir::claim_or_succeed(path, node) {
                Ok(Claim::Free(run_dir)) => return Some(run_dir),
                Ok(Claim::Held(_)) => return None,
                // It is about to claim it.
                Err(_) => sleep(POLL).await,
            }
        }
    };
    timeout(LINGER, claimed).await.unwrap_or_default()
}

/// The old agent has paused, or is gone.
#[derive(Debug)]
pub(crate) struct Granted {
    successor: Successor,
    old: Old,
}

#[derive(Debug)]
enum Old {
    Paused(UnixStream),
    Gone(RunDir),
}

impl Granted {
    /// Says that everything has been taken over, and claims the directory.
    pub(crate) async fn done(self) -> Result<RunDir, InstanceError> {
        let mut stream = match self.old {
            Old::Gone(run_dir) => return Ok(run_dir),
            Old::Paused(stream) => stream,
        };
        // One that has died meanwhile lets go of the directory all the same.
        let _: io::Result<()> = stream.write_all(&[DONE]).await;
        let deadline = Instant::now() + LET_GO;
        loop {
            match self.successor.claim() {
                Err(InstanceError::Claimed { .. }) if Instant::now() < deadline => sleep(POLL).await,
                claimed => return claimed,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(dir: &Path) -> Claim {
        RunDir::claim_or_succeed(dir, "n1").unwrap()
    }

    struct Serving {
        run_dir: RunDir,
        server: tokio::task::JoinHandle<Result<(), InstanceError>>,
        takeovers: mpsc::Receiver<Takeover>,
    }

    impl Serving {
        async fn start(dir: &Path) -> Self {
            let Claim::Free(run_dir) = claim(dir) else { panic!("nobody is there") };
            let (send, takeovers) = mpsc::channel(1);
            let server = tokio::spawn(serve_successors(run_dir.clone(), send));
            while !dir.join("ambit.handover.sock").exists() {
                tokio::task::yield_now().await;
            }
            Self { run_dir, server, takeovers }
        }

        async fn end(self) {
            self.server.abort();
            let _ = self.server.await;
            drop(self.run_dir);
        }
    }

    fn successor(dir: &Path) -> Successor {
        match claim(dir) {
            Claim::Held(successor) => successor,
            Claim::Free(_) => panic!("the directory is held"),
        }
    }

    #[tokio::test]
    async fn the_directory_goes_from_one_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = Serving::start(dir.path()).await;
        let next = successor(dir.path());
        assert!(RunDir::claim_or_succeed(dir.path(), "n1").is_err(), "one successor at a time");
        let new = tokio::spawn(async { next.ask().await.unwrap().done().await.unwrap() });
        let takeover = old.takeovers.recv().await.unwrap();
        assert!(takeover.grant().await);
        old.end().await;
        let run_dir = new.await.unwrap();
        assert!(matches!(claim(dir.path()), Claim::Held(_)), "the new one holds it");
        drop(run_dir);
    }

    #[tokio::test]
    async fn a_successor_that_dies_leaves_the_old_one_in_charge() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = Serving::start(dir.path()).await;
        let asked = tokio::spawn(successor(dir.path()).ask());
        let takeover = old.takeovers.recv().await.unwrap();
        let granted = tokio::spawn(takeover.grant());
        drop(asked.await.unwrap().unwrap());
        assert!(!granted.await.unwrap());
        assert!(matches!(claim(dir.path()), Claim::Held(_)));
    }

    #[tokio::test]
    async fn a_dead_agent_need_not_be_asked() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = Serving::start(dir.path()).await;
        let next = successor(dir.path());
        let asked = tokio::spawn(next.ask());
        drop(old.takeovers.recv().await.unwrap());
        old.end().await;
        let run_dir = asked.await.unwrap().unwrap().done().await.unwrap();
        assert!(matches!(claim(dir.path()), Claim::Held(_)), "the new one holds it");
        drop(run_dir);
    }

    #[tokio::test]
    async fn a_directory_that_was_handed_over_comes_back_only_if_nobody_took_it() {
        let dir = tempfile::tempdir().unwrap();
        let taken = claim(dir.path());
        assert!(reclaim(dir.path(), "n1").await.is_none(), "its new owner lives");
        drop(taken);
        assert!(reclaim(dir.path(), "n1").await.is_some());
    }

    #[test]
    fn an_agent_of_another_node_is_no_successor() {
        let dir = tempfile::tempdir().unwrap();
        let Claim::Free(_held) = claim(dir.path()) else { panic!("nobody is there") };
        let error = RunDir::claim_or_succeed(dir.path(), "n2").unwrap_err().to_string();
        assert!(error.starts_with("another agent runs in this --run-dir: "), "{error}");
    }
}
