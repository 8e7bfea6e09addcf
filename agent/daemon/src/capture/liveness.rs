//! Whether the other end of a TCP connection is still there: what the kernel knows of it, and how long it is to wait.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
    time::Duration,
};

use nix::libc;
use socket2::{SockFilter, SockRef, TcpKeepalive};

/// How often a tunnel on which nothing passes is asked whether it still leads anywhere.
const TUNNEL_PROBES: Duration = Duration::from_secs(60);
/// How long a tunnel may be without any answer: as long as Linux retransmits by default (`net.ipv4.tcp_retries2`), so that a
/// connection outlives an outage in a tunnel as it would outside.
const TUNNEL_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long an application may be left to find out by its own keepalive that nobody answers. One that takes longer is told.
const LONGEST_SILENCE: Duration = Duration::from_secs(5 * 60);
/// How often an application that has ended its direction, and may have closed, is asked whether there is anything left of it. An
/// orphan's kernel forgets it after `net.ipv4.tcp_fin_timeout`, usually a minute.
const HALF_CLOSED_PROBES: Duration = Duration::from_secs(20);

/// How the packets of a connection fare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// Something has not been acknowledged, or could not even be sent.
    pub(crate) unanswered: bool,
    /// The smoothed round trip time.
    pub(crate) round_trip: Duration,
}

/// What is known of the way to the other end; `None` if there is no connection.
pub(crate) fn path(stream: &impl AsFd) -> Option<Path> {
    let info = tcp_info(stream).ok()?;
    Some(Path {
        unanswered: info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0,
        round_trip: Duration::from_micros(info.tcpi_rtt.into()),
    })
}

/// How many segments have come.
#[cfg(test)]
pub(crate) fn segments_received(stream: &impl AsFd) -> io::Result<u32> {
    tcp_info(stream).map(|info| info.tcpi_segs_in)
}

/// Whether a connection that has failed was reset in answer to a keepalive probe: the other end has not broken off, its kernel
/// has forgotten it.
pub(crate) fn answered_probe(stream: &impl AsFd) -> bool {
    tcp_info(stream).is_ok_and(|info| info.tcpi_probes > 0)
}

/// Has the kernel ask now and then whether the other end of a half-closed connection still exists.
pub(crate) fn probe_when_idle(stream: &impl AsFd) {
    let probes = TcpKeepalive::new().with_time(HALF_CLOSED_PROBES).with_interval(HALF_CLOSED_PROBES);
    // It fails only for what is no socket.
    let _: io::Result<()> = SockRef::from(stream).set_tcp_keepalive(&probes);
}

/// Has the kernel ask whether the other end is still there, as often as told; what is not said is the kernel's own.
pub(crate) fn keep_alive(
    stream: &impl AsFd,
    time: Option<Duration>,
    interval: Option<Duration>,
    probes: Option<u32>,
) {
    let mut keepalive = TcpKeepalive::new();
    if let Some(time) = time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = probes {
        // The most that the kernel takes (tcp(7)).
        keepalive = keepalive.with_retries(probes.clamp(1, 127));
    }
    let socket = SockRef::from(stream);
    // They fail only for what is no socket.
    let _: io::Result<()> = socket.set_keepalive(true);
    let _: io::Result<()> = socket.set_tcp_keepalive(&keepalive);
}

/// How long an application has its kernel wait for the other end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patience {
    keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`.
    user_timeout: Option<Duration>,
}

/// `SO_KEEPALIVE` and what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Keepalive {
    idle: Duration,
    interval: Duration,
    probes: u32,
}

impl Patience {
    /// Whether the application has said how long what it says may go unanswered by the other kernel.
    pub(crate) fn has_user_timeout(&self) -> bool {
        self.user_timeout.is_some()
    }

    pub(super) fn told(told: &ambit_ebpf_common::Patience) -> Self {
        // What the kernel takes at most (tcp(7)), and what it does by default.
        let seconds = |told: u32, default: u32| match told {
            0 => Duration::from_secs(default.into()),
            told => Duration::from_secs(told.min(32_767).into()),
        };
        let keepalive = (told.keepalive != 0).then(|| Keepalive {
            idle: seconds(told.idle, 7200),
            interval: seconds(told.interval, 75),
            probes: if told.probes == 0 { 9 } else { told.probes.min(127) },
        });
        let user_timeout = (told.user_timeout != 0)
            .then(|| Duration::from_millis(told.user_timeout.min(i32::MAX.unsigned_abs()).into()));
        Self { keepalive, user_timeout }
    }

    /// Has the kernel wait as long for the other end of `stream`. With neither set it is as at first.
    pub(crate) fn set_on(&self, stream: &impl AsFd) -> io::Result<()> {
        let Self { keepalive, user_timeout } = *self;
        let socket = SockRef::from(stream);
        if keepalive.is_none() && user_timeout.is_none() {
            return tune_tunnel(stream);
        }
        socket.set_tcp_user_timeout(user_timeout)?;
        match keepalive {
            None => socket.set_keepalive(false),
            Some(Keepalive { idle, interval, probes }) => socket.set_tcp_keepalive(
                &TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes),
            ),
        }
    }

    /// How long the application's kernel takes to find out by itself that nobody answers, if it does in good time.
    pub(crate) fn until_noticed(&self) -> Option<Duration> {
        let Keepalive { idle, interval, probes } = self.keepalive?;
        let whole = idle + interval * probes;
        let whole = self.user_timeout.map_or(whole, |limit| limit.max(idle + interval));
        (whole <= LONGEST_SILENCE).then_some(whole + interval)
    }
}

/// Has the kernel drop whatever comes on `stream`, so that the other end meets the silence that there is behind it.
pub(crate) fn fall_silent(stream: &impl AsFd) -> io::Result<()> {
    // BPF_RET | BPF_K: nothing of the packet is kept.
    SockRef::from(stream).attach_filter(&[SockFilter::new(libc::BPF_RET as u16, 0, 0, 0)])
}

/// Gives a connection between agents its time-outs, and has small frames not held back.
pub(crate) fn tune_tunnel(stream: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(TUNNEL_PATIENCE))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(TUNNEL_PROBES).with_interval(TUNNEL_PROBES))
}

/// Has the kernel acknowledge what comes as soon as it is read, until something goes the other way (tcp(7), `TCP_QUICKACK`).
pub(crate) fn acknowledge_at_once(stream: &impl AsFd) {
    // It fails only for what is no socket.
    let _: io::Result<()> = SockRef::from(stream).set_tcp_quickack(true);
}

/// Why a socket has failed, if the kernel has not told that already.
pub(crate) fn failure(stream: &impl AsFd) -> io::Error {
    let told = SockRef::from(stream).take_error();
    told.ok().flatten().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}

pub(super) fn tcp_info(stream: &impl AsFd) -> io::Result<libc::tcp_info> {
    // SAFETY: all of it are integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` and `len` outlive the call and `len` is the size of `info`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}
