//! One end of a TCP connection that does what it is told, step by step, and tells what it saw: for what applications notice.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

/// How `steps` are taken.
#[derive(Clone, Debug, clap::Args)]
pub struct Steps {
    /// Take one connection here; `ready` is said first.
    #[arg(long, required_unless_present = "to", conflicts_with = "to")]
    pub listen: Option<SocketAddr>,
    /// Connect to there.
    #[arg(long)]
    pub to: Option<SocketAddr>,
    /// What to do: options first (`keepalive:IDLE:INTERVAL:PROBES`, `user-timeout:MS`, `oob-inline`, `linger-0`, also later), then
    /// `open`, then any of `send:TEXT`, `urgent:TEXT`, `lines:COUNT[:PAUSE in µs]`, `stuff` (write until nothing is taken), `read` (once),
    /// `read-all`, `await-error:MS` (by poll), `fin`, `close`, `sleep:MS`, `say:WORD` (on standard error).
    #[arg(required = true)]
    pub steps: Vec<String>,
}

/// What came of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The step.
    pub step: String,
    /// The error that it met, by its kind as Rust names it.
    pub error: Option<String>,
    /// Bytes read or written.
    pub bytes: usize,
    /// What was read, at most 4 KiB of it.
    pub text: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// When it was done, in milliseconds of the epoch.
    pub at_ms: u64,
}

/// Nothing taken for so long means that nothing will be.
const STUFFED: Duration = Duration::from_millis(500);
const TEXT: usize = 4096;

pub(super) fn take(how: &Steps) -> Result<Vec<Seen>> {
    let mut end = End::Unopened(Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?);
    if let (End::Unopened(socket), Some(listen)) = (&end, how.listen) {
        socket.set_reuse_address(true)?;
        socket.bind(&listen.into())?;
        socket.listen(8)?;
        eprintln!("ready");
    }
    let mut all = Vec::new();
    for step in &how.steps {
        let (start, mut seen) = (Instant::now(), Seen { step: step.clone(), ..Seen::default() });
        if let Err(error) = end.step(how.to, step, &mut seen) {
            let error = error.downcast::<std::io::Error>().with_context(|| format!("step {step}"))?;
            seen.error = Some(format!("{:?}", error.kind()));
        }
        seen.took_ms = start.elapsed().as_millis().try_into()?;
        seen.at_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis().try_into()?;
        all.push(seen);
    }
    Ok(all)
}

enum End {
    Unopened(Socket),
    Open(TcpStream),
    Closed,
}

impl End {
    fn step(&mut self, to: Option<SocketAddr>, step: &str, seen: &mut Seen) -> Result<()> {
        let mut words = step.splitn(2, ':');
        let (verb, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match verb {
            "sleep" => thread::sleep(Duration::from_millis(rest.parse()?)),
            "say" => eprintln!("{rest}"),
            "close" => *self = Self::Closed,
            "open" => {
                let Self::Unopened(socket) = self else { bail!("open already") };
                *self = Self::Open(match to {
                    Some(to) => {
                        socket.connect(&to.into())?;
                        socket.try_clone()?.into()
                    }
                    None => socket.accept()?.0.into(),
                });
            }
            _ => match self {
                Self::Unopened(socket) => option(socket, verb, rest)?,
                Self::Open(stream) => on(stream, verb, rest, seen)?,
                Self::Closed => bail!("closed already"),
            },
        }
        Ok(())
    }
}

fn option(socket: &Socket, verb: &str, rest: &str) -> Result<()> {
    match verb {
        "keepalive" => {
            let [idle, interval, probes] = rest.split(':').collect::<Vec<_>>()[..] else { bail!("{rest}") };
            let seconds = |text: &str| Ok::<_, anyhow::Error>(Duration::from_secs(text.parse()?));
            socket.set_tcp_keepalive(
                &TcpKeepalive::new()
                    .with_time(seconds(idle)?)
                    .with_interval(seconds(interval)?)
                    .with_retries(probes.parse()?),
            )?;
        }
        "user-timeout" => socket.set_tcp_user_timeout(Some(Duration::from_millis(rest.parse()?)))?,
        "oob-inline" => socket.set_out_of_band_inline(true)?,
        "linger-0" => socket.set_linger(Some(Duration::ZERO))?,
        other => bail!("there is no step {other}"),
    }
    Ok(())
}

fn on(stream: &mut TcpStream, verb: &str, rest: &str, seen: &mut Seen) -> Result<()> {
    match verb {
        "send" => {
            stream.write_all(rest.as_bytes())?;
            seen.bytes = rest.len();
        }
        "urgent" => seen.bytes = Socket::from(stream.try_clone()?).send_out_of_band(rest.as_bytes())?,
        "lines" => {
            let (count, pause) = rest.split_once(':').unwrap_or((rest, "0"));
            let pause = Duration::from_micros(pause.parse()?);
            for number in 0..count.parse::<usize>()? {
                let start = Instant::now();
                seen.bytes += stream.write(format!("line {number:06}\n").as_bytes())?;
                while start.elapsed() < pause {
                    std::hint::spin_loop();
                }
            }
        }
        "stuff" => {
            stream.set_write_timeout(Some(STUFFED))?;
            let chunk = vec![b'x'; 64 << 10];
            loop {
                match stream.write(&chunk) {
                    Ok(wrote) => seen.bytes += wrote,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        "read" => {
            let mut some = [0; TEXT];
            seen.bytes = stream.read(&mut some)?;
            seen.text = String::from_utf8_lossy(&some[..seen.bytes]).into_owned();
        }
        "read-all" => {
            let mut all = Vec::new();
            let ended = stream.read_to_end(&mut all);
            seen.bytes = all.len();
            seen.text = String::from_utf8_lossy(&all[..all.len().min(TEXT)]).into_owned();
            ended?;
        }
        "await-error" => {
            let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
            if poll(&mut fds, PollTimeout::from(rest.parse::<u16>()?))? == 0 {
                return Err(std::io::Error::from(ErrorKind::TimedOut).into());
            }
            seen.text = format!("{:?}", fds[0].revents());
        }
        "fin" => stream.shutdown(Shutdown::Write)?,
        _ => option(&Socket::from(stream.try_clone()?), verb, rest)?,
    }
    Ok(())
}
