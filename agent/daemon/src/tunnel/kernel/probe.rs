//! What this kernel can do with records, found out by having it do it.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use nix::sys::socket::TlsGetRecordType;

use super::{crypto_info, is_record};
use crate::{
    capture::{attach_tls, open_by_kernel, receive_record, seal_by_kernel, send_record},
    tunnel::secret::{Cipher, TrafficKeys},
};

/// How long a step may take on loopback.
const PATIENCE: Duration = Duration::from_secs(2);
/// RFC 8446 §4: the content type of handshake messages, and a KeyUpdate that asks for none in return.
const HANDSHAKE: u8 = 22;
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// What a kernel can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ability {
    /// All that a tunnel needs.
    Whole,
    /// All but going on under new keys, as before Linux 6.14: a tunnel ends that would need them.
    FirstKeysOnly,
}

/// Tries it between two sockets on loopback; takes a few milliseconds, and loads the kernel's module where it is one. The error says
/// what the kernel does not do.
pub(crate) fn probe() -> Result<Ability, String> {
    let failed = |step: &'static str| move |error: io::Error| format!("{step}: {error}");
    let (mut from, mut to) = pair().map_err(failed("connecting over loopback"))?;
    for end in [&from, &to] {
        attach_tls(end).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                "the kernel has no TLS (CONFIG_TLS), or its module `tls` is not loaded and cannot be"
                    .to_owned()
            }
            _ => format!("putting TLS on a connection (TCP_ULP): {error}"),
        })?;
    }
    use_keys(&from, &to, 1).map_err(failed("taking keys of AES-GCM"))?;
    passes(&mut from, &mut to).map_err(failed("sealing and opening a record"))?;
    send_record(&from, HANDSHAKE, &KEY_UPDATE)
        .and_then(|_| told(&mut to))
        .map_err(failed("passing a record that is no data"))?;
    let renewed = use_keys(&from, &to, 2).and_then(|()| passes(&mut from, &mut to));
    Ok(if renewed.is_ok() { Ability::Whole } else { Ability::FirstKeysOnly })
}

fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let from = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
    let own = from.local_addr()?;
    // Anybody may connect meanwhile.
    let to = loop {
        let (to, peer) = listener.accept()?;
        if peer == own {
            break to;
        }
    };
    for end in [&from, &to] {
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((from, to))
}

/// Keys that protect nothing.
fn use_keys(from: &TcpStream, to: &TcpStream, number: u8) -> io::Result<()> {
    let keys = crypto_info(0, &TrafficKeys::worthless(Cipher::Aes256Gcm, number))?;
    seal_by_kernel(from, &keys)?;
    open_by_kernel(to, &keys)
}

fn passes(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    const WORD: &[u8] = b"ambit";
    from.write_all(WORD)?;
    let mut read = [0; WORD.len()];
    to.read_exact(&mut read)?;
    if read == WORD { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// A record that is no data stops a read, and can be taken with its type.
fn told(to: &mut TcpStream) -> io::Result<()> {
    let mut room = [0; 64];
    match to.read(&mut room) {
        Err(error) if is_record(&error) => {}
        Err(error) => return Err(error),
        Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
    }
    match receive_record(to, &mut room)? {
        (Some(TlsGetRecordType::Handshake), len) if room[..len] == KEY_UPDATE => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
