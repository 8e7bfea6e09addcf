//! Sockets with the options that capture needs.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
};

use ambit_ebpf_common::DELIVERY_MARK;
use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpStream;

/// Source ports of dials in a client's name, as the `attempt`-th try picks them: outside the range that Linux hands out
/// by default (32,768 to 60,999), and away from where this client gets its own, which must not meet them; above that
/// range first, where servers seldom are. One that the client has open to the same port already is found out by the
/// connect program, and another is tried.
fn delivery_port(client: u16, attempt: u32) -> u16 {
    const ABOVE: RangeInclusive<u16> = 61_000..=65_535;
    const BELOW: RangeInclusive<u16> = 16_384..=32_767;
    let (first, second) = if client >= *ABOVE.start() { (BELOW, ABOVE) } else { (ABOVE, BELOW) };
    rand::random_range(if attempt < DELIVERY_ATTEMPTS / 3 { first } else { second })
}

/// How many source ports to try for one dial.
pub(super) const DELIVERY_ATTEMPTS: u32 = 24;

/// A non-blocking TCP socket.
pub(super) fn tcp(v6: bool) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
}

/// What a socket needs that has an application at its other end: urgent data comes in its place, and no more waits in the kernel
/// for a reader that does not read than keeps one busy that does.
pub(super) fn ready_for_application(socket: &impl AsFd) -> io::Result<()> {
    const UNSENT: u32 = 256 << 10;
    let socket = SockRef::from(socket);
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_notsent_lowat(UNSENT)
}

/// A listener on the pod's own address, at a port that the kernel picks.
pub(super) fn listen(ip: IpAddr) -> io::Result<Socket> {
    let socket = tcp(ip.is_ipv6())?;
    if ip.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Accepted connections inherit these options. They sit on the application's port, which must not keep an application
    // from listening there.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    reset_on_drop(&socket);
    ready_for_application(&socket)?;
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    socket.listen(4096)?;
    Ok(socket)
}

/// A socket that may connect in the name of a client, whose address is not this host's.
pub(super) fn transparent(v6: bool) -> io::Result<Socket> {
    let socket = tcp(v6)?;
    let (level, name) =
        if v6 { (libc::SOL_IPV6, libc::IPV6_TRANSPARENT) } else { (libc::SOL_IP, libc::IP_TRANSPARENT) };
    set(&socket, level, name, 1)?;
    socket.set_mark(DELIVERY_MARK)?;
    socket.set_tcp_nodelay(true)?;
    ready_for_application(&socket)?;
    // A port may serve several dials to different destinations, and is no obstacle to a server that wants to listen on it.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Gives such a socket the address of `client`, and a port of the `attempt`-th choice: the address that it has then.
pub(super) fn bind_delivery(socket: &Socket, client: SocketAddr, attempt: u32) -> io::Result<SocketAddr> {
    let own = SocketAddr::new(client.ip(), delivery_port(client.port(), attempt));
    socket.bind(&own.into())?;
    Ok(own)
}

/// Has the last packet of the handshake of a connection that is to be made wait for the first bytes, for a fifth of a second at most
/// (tcp(7), `TCP_DEFER_ACCEPT`, which does that where it is set on the side that connects).
pub(super) fn end_handshake_with_data(socket: &Socket) {
    // It fails only for what is no socket.
    let _: io::Result<()> = set(socket, libc::SOL_TCP, libc::TCP_DEFER_ACCEPT, 1);
}

/// Leaves the source port to connect(2) where only the address is bound: it may serve connections to other destinations.
pub(super) fn bind_without_port(socket: &Socket, source: IpAddr) -> io::Result<()> {
    set(socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// A socket that sends whole packets, headers included (raw(7), ipv6(7)).
pub(super) fn raw(v6: bool) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(libc::IPPROTO_RAW.into()))?;
    // It is never read.
    socket.set_recv_buffer_size(0)?;
    Ok(socket)
}

/// Has `program` see every segment that comes to `listener`; connections that it accepts inherit it.
pub(super) fn attach_filter(listener: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    set(&SockRef::from(&listener), libc::SOL_SOCKET, libc::SO_ATTACH_BPF, program)
}

/// Spares a connection its listener's filter.
pub(super) fn detach_filter(stream: &impl AsFd) {
    // It fails only for what has none.
    let _: io::Result<()> = set(&SockRef::from(stream), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0);
}

/// Connects to an address of the same network namespace: mostly the kernel is through with the handshake before connect(2)
/// is, and nobody needs to wait for an event.
pub(super) async fn connect_nearby(socket: Socket, addr: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&addr.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let connected = socket.peer_addr().is_ok();
    let stream = TcpStream::from_std(socket.into())?;
    if !connected {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    Ok(stream)
}

/// Has `stream` closed with a RST, whoever closes it: a stream that was cut, be it by the agent's death, must not look
/// like one that has ended.
pub(crate) fn reset_on_drop(stream: &impl AsFd) {
    // It fails only for what is no socket.
    let _: io::Result<()> = SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
}

/// Takes back that dropping an application's or client's connection resets it: both directions have ended.
pub(crate) fn end_cleanly(stream: &impl AsFd) {
    let _: io::Result<()> = SockRef::from(stream).set_linger(None);
}

/// Cuts both buffers of a socket to `bytes`, if that is said: the kernel then no longer makes them bigger as it likes, which is up
/// to several megabytes each, charged to this process.
pub(crate) fn bound_buffers(stream: &impl AsFd, bytes: Option<usize>) {
    if let Some(bytes) = bytes {
        let socket = SockRef::from(stream);
        // They fail only for what is no socket.
        let _: io::Result<()> = socket.set_recv_buffer_size(bytes);
        let _: io::Result<()> = socket.set_send_buffer_size(bytes);
    }
}

/// Has whoever waits to read `stream` woken only once it has `bytes`, or has ended. With less there already, waiting for one
/// again tells at once.
pub(crate) fn wake_at(stream: &impl AsFd, bytes: usize) {
    // It fails only for what is no socket.
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    let _: io::Result<()> = set(&SockRef::from(stream), libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes);
}

/// Whether the next byte of `stream` is an urgent one: a read ends in front of it (tcp(7), `SIOCATMARK`).
pub(crate) fn is_at_mark(stream: &impl AsFd) -> bool {
    const SIOCATMARK: libc::Ioctl = 0x8905;
    let mut at_mark: libc::c_int = 0;
    // SAFETY: the request writes one integer.
    let result = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), SIOCATMARK, &raw mut at_mark) };
    result == 0 && at_mark != 0
}

/// Whether a read of `stream` would bring a byte at once.
pub(super) fn has_bytes(stream: &impl AsFd) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    let peek = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    SockRef::from(stream).recv_with_flags(&mut byte, peek).is_ok_and(|bytes| bytes > 0)
}

/// The cookie of the network namespace that `socket` belongs to.
pub(super) fn netns_cookie(socket: &Socket) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` outlive the call and `len` is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The user namespace that owns a network namespace (ioctl_nsfs(2), `NS_GET_USERNS`).
pub(super) fn owning_user_namespace(netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: the request takes no argument.
    let fd = unsafe { libc::ioctl(netns.as_raw_fd(), NS_GET_USERNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set(socket: &Socket, level: libc::c_int, name: libc::c_int, value: u32) -> io::Result<()> {
    // SAFETY: `value` outlives the call and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
