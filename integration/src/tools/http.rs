//! A small HTTP/1.1 server, quick enough not to be what a load test measures.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    thread,
};

use anyhow::Result;
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

/// What every GET is answered with.
pub const BODY: &str =
    "Everything you read here came through the pod's own socket, and nobody told the application.\n";

const THREADS: usize = 2;
const LISTENER: u64 = u64::MAX;
/// Longer requests are cut off: this is no server for strangers.
const REQUEST_LIMIT: usize = 1 << 20;

/// Serves until the process is killed.
pub(super) fn serve(listen: SocketAddr) -> Result<()> {
    let listener = super::servers::listen_on(listen)?;
    listener.set_nonblocking(true)?;
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| event_loop(&listener));
        }
    });
    Ok(())
}

struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    /// The client has sent its last byte, maybe together with the bytes that are still to be read: no event will tell
    /// of its end again.
    ended: bool,
    closing: bool,
    /// What of an answer's body is still to be made.
    unsent: u64,
    /// What of a request's body nobody keeps.
    unread: u64,
}

/// A GET of this, with a number behind it, is answered with so many bytes.
const BYTES: &str = "get /bytes/";
/// The body of a PUT to this goes nowhere.
const NOWHERE: &str = "put /nowhere";
/// What an authorization provider says no to; it is asked below `/check`.
const DENIED: &str = "get /check/denied ";

fn event_loop(listener: &TcpListener) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE, LISTENER))?;
    let mut clients: HashMap<u64, Client> = HashMap::new();
    let mut next = 0;
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            ready => ready?,
        };
        for event in &events[..ready] {
            if event.data() == LISTENER {
                accept(listener, &epoll, &mut clients, &mut next)?;
            } else if let Some(client) = clients.get_mut(&event.data()) {
                client.ended |= event.events().contains(EpollFlags::EPOLLRDHUP);
                if client.turn().is_err() {
                    clients.remove(&event.data());
                }
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    epoll: &Epoll,
    clients: &mut HashMap<u64, Client>,
    next: &mut u64,
) -> Result<()> {
    while let Ok((stream, _)) = listener.accept() {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        // Edge-triggered: a turn always reads and writes until the kernel says no.
        let interest =
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(stream.as_fd(), EpollEvent::new(interest, *next))?;
        let mut client = Client {
            stream,
            request: Vec::new(),
            answer: Vec::new(),
            ended: false,
            closing: false,
            unsent: 0,
            unread: 0,
        };
        if client.turn().is_ok() {
            clients.insert(*next, client);
        }
        *next += 1;
    }
    Ok(())
}

impl Client {
    /// Reads, answers and writes as far as it goes; an error ends the connection.
    fn turn(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; 64 * 1024];
        while !self.closing {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.closing = true,
                Ok(read) => {
                    let skipped = usize::try_from(self.unread).unwrap_or(read).min(read);
                    self.unread -= skipped as u64;
                    self.request.extend_from_slice(&buffer[skipped..read]);
                    if skipped > 0 && self.unread == 0 {
                        self.answer.extend_from_slice(b"HTTP/1.1 204 No Content\r\n\r\n");
                    }
                    while let Some(used) = self.answer_one() {
                        self.request.drain(..used);
                    }
                    if self.request.len() > REQUEST_LIMIT {
                        return Err(ErrorKind::InvalidData.into());
                    }
                    if read < buffer.len() && !self.ended {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        while !self.answer.is_empty() || self.unsent > 0 {
            let made = &buffer[..usize::try_from(self.unsent).unwrap_or(buffer.len()).min(buffer.len())];
            let is_made = self.answer.is_empty();
            match self.stream.write(if is_made { made } else { &self.answer }) {
                Ok(written) if is_made => self.unsent -= written as u64,
                Ok(written) => drop(self.answer.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.closing { Err(ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// Answers the first complete request; returns its length, or `None` while it is not complete.
    fn answer_one(&mut self) -> Option<usize> {
        let end = self.request.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&self.request[..end]).to_ascii_lowercase();
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let length = header("content-length:").and_then(|value| value.parse().ok()).unwrap_or(0);
        let bytes = head.strip_prefix(BYTES).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        if let Some(bytes) = bytes {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
            self.answer.extend_from_slice(head.as_bytes());
            self.unsent = bytes;
            return Some(end);
        }
        if head.starts_with(NOWHERE) {
            let here = length.min(self.request.len() - end);
            self.unread = (length - here) as u64;
            if self.unread == 0 {
                self.answer.extend_from_slice(b"HTTP/1.1 204 No Content\r\n\r\n");
            }
            return Some(end + here);
        }
        if head.starts_with(DENIED) {
            let body = "denied by the provider\n";
            let head = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n", body.len());
            self.answer.extend_from_slice(head.as_bytes());
            self.answer.extend_from_slice(body.as_bytes());
            return Some(end);
        }
        let used = end.saturating_add(length);
        let body = self.request.get(end..used)?;
        let close = header("connection:") == Some("close");
        let body = if length > 0 { body } else { BODY.as_bytes() };
        let connection = if close { "Connection: close\r\n" } else { "" };
        let head = format!("HTTP/1.1 200 OK\r\n{connection}Content-Length: {}\r\n\r\n", body.len());
        self.answer.extend_from_slice(head.as_bytes());
        self.answer.extend_from_slice(body);
        self.closing |= close;
        Some(used)
    }
}
