//! Servers that take every connection in a thread of its own.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, SockRef, Socket, Type};

/// Enough for a thousand clients that connect at once.
const BACKLOG: i32 = 4_096;
const STACK: usize = 128 * 1024;

/// Sends back what comes, and FIN after FIN.
pub(super) fn echo(listen: SocketAddr) -> Result<()> {
    serve(listen, |mut stream| {
        stream.set_nodelay(true)?;
        let mut buffer = [0; 16 * 1024];
        loop {
            match stream.read(&mut buffer)? {
                0 => return stream.shutdown(Shutdown::Write),
                read => stream.write_all(&buffer[..read])?,
            }
        }
    })
}

/// Tells the client, before it says anything, whom the server sees.
pub(super) fn whoami(listen: SocketAddr) -> Result<()> {
    serve(listen, |mut stream| {
        let greeting = format!("peer {} local {}\n", plain(stream.peer_addr()?), plain(stream.local_addr()?));
        stream.write_all(greeting.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        drain(&mut stream).map(drop)
    })
}

/// Answers at length, but only once the client has sent its FIN.
pub(super) fn answer_after_eof(listen: SocketAddr, bytes: usize) -> Result<()> {
    serve(listen, move |mut stream| {
        let read = drain(&mut stream)?;
        // Time for a relay that mixes up a half-close with a close to do its harm.
        thread::sleep(Duration::from_millis(200));
        stream.write_all(format!("{read}\n").as_bytes())?;
        stream.write_all(&vec![b'x'; bytes])
    })
}

/// Resets after the first bytes.
pub(super) fn reset(listen: SocketAddr) -> Result<()> {
    serve(listen, |mut stream| {
        let _ = stream.read(&mut [0; 1024])?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))
    })
}

/// A listening socket that serves IPv4 too where the address is `[::]`, and says `ready`.
#[allow(clippy::print_stdout, reason = "the harness waits for this line")]
pub(super) fn listen_on(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("cannot bind {address}"))?;
    socket.listen(BACKLOG)?;
    println!("ready");
    Ok(socket.into())
}

pub(super) fn serve(
    listen: SocketAddr,
    handle: impl Fn(TcpStream) -> std::io::Result<()> + Send + Clone + 'static,
) -> Result<()> {
    let listener = listen_on(listen)?;
    loop {
        let (stream, _) = listener.accept()?;
        let handle = handle.clone();
        // A client that leaves early ends its own thread only.
        let _ = thread::Builder::new().stack_size(STACK).spawn(move || handle(stream))?;
    }
}

fn drain(stream: &mut TcpStream) -> std::io::Result<usize> {
    let mut buffer = [0; 16 * 1024];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(total),
            read => total += read,
        }
    }
}

/// An address as its client knows it: IPv4 even where an IPv6 socket took it.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
