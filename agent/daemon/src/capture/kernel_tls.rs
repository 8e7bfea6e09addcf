//! TLS records that the kernel seals and opens on a TCP socket (<https://docs.kernel.org/networking/tls.html>): the calls that
//! it takes. What is in the records, and when the kernel gets them, is for the tunnel.

use std::{
    io::{self, IoSliceMut},
    mem,
    os::fd::{AsFd, AsRawFd as _},
    ptr,
};

use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessageOwned, MsgFlags, TlsGetRecordType, recvmsg, setsockopt,
        sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo},
    },
};
use zeroize::Zeroize as _;

use super::liveness::tcp_info;

/// Looks at a count that has to stand still for it; one that does not is looked at some other time.
const LOOKS: usize = 8;

/// Has the kernel's TLS sit on top of a connection that stands. It changes nothing yet. A kernel that has it as a module loads that.
pub(crate) fn attach_tls(stream: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(stream, TcpUlp::default(), b"tls")?)
}

/// Has it seal what is written from now on; called again, with new keys (from Linux 6.14 on).
pub(crate) fn seal_by_kernel(stream: &impl AsFd, keys: &TlsCryptoInfo) -> io::Result<()> {
    Ok(setsockopt(stream, TcpTlsTx, keys)?)
}

/// Has it open what is read from now on, with whose first byte a record begins; called again, with new keys.
pub(crate) fn open_by_kernel(stream: &impl AsFd, keys: &TlsCryptoInfo) -> io::Result<()> {
    setsockopt(stream, TcpTlsRx, keys)?;
    expect_no_padding(stream);
    Ok(())
}

/// Has records opened where they are read to. Those that are padded against expectation cost a copy.
fn expect_no_padding(stream: &impl AsFd) {
    let yes: libc::c_int = 1;
    // SAFETY: `yes` outlives the call and its size is given. Before Linux 6.0 there is no such option, and nothing to be lost.
    let _: libc::c_int = unsafe {
        libc::setsockopt(
            stream.as_fd().as_raw_fd(),
            libc::SOL_TLS,
            libc::TLS_RX_EXPECT_NO_PAD,
            (&raw const yes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}

/// The number of the record that is sealed next under the key in force (RFC 8446 §5.3), `keys` being of the same cipher.
pub(crate) fn next_sealed(stream: &impl AsFd, keys: &TlsCryptoInfo) -> io::Result<u64> {
    record_number(stream, keys, libc::TLS_TX)
}

/// The number of the record that is opened next.
pub(crate) fn next_opened(stream: &impl AsFd, keys: &TlsCryptoInfo) -> io::Result<u64> {
    record_number(stream, keys, libc::TLS_RX)
}

fn record_number(stream: &impl AsFd, keys: &TlsCryptoInfo, direction: libc::c_int) -> io::Result<u64> {
    // All ciphers' end with it.
    const NUMBER: usize = 8;
    let size = match keys {
        TlsCryptoInfo::Aes128Gcm(keys) => size_of_val(keys),
        TlsCryptoInfo::Aes256Gcm(keys) => size_of_val(keys),
        TlsCryptoInfo::Chacha20Poly1305(keys) => size_of_val(keys),
    };
    let mut told = [0_u8; 64];
    let mut len = size as libc::socklen_t;
    // SAFETY: `told` and `len` outlive the call, and `told` has more than `len` bytes.
    let result = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::SOL_TLS,
            direction,
            told.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    let error = io::Error::last_os_error();
    let number = told[..size].last_chunk::<NUMBER>().map_or(0, |number| u64::from_be_bytes(*number));
    // The key is in it, too.
    told.zeroize();
    if result == 0 { Ok(number) } else { Err(error) }
}

/// Sends a record of another type than data, which is sealed by the kernel.
pub(crate) fn send_record(stream: &impl AsFd, content: u8, bytes: &[u8]) -> io::Result<usize> {
    #[repr(C)]
    struct Ancillary {
        header: libc::cmsghdr,
        content: [u8; 8],
    }
    // SAFETY: all of it are integers, for which zero is a value.
    let mut ancillary: Ancillary = unsafe { mem::zeroed() };
    // SAFETY: it computes a number.
    ancillary.header.cmsg_len = unsafe { libc::CMSG_LEN(1) } as _;
    ancillary.header.cmsg_level = libc::SOL_TLS;
    ancillary.header.cmsg_type = libc::TLS_SET_RECORD_TYPE;
    ancillary.content[0] = content;
    let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all of it are integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = ptr::from_mut(&mut ancillary).cast();
    message.msg_controllen = size_of::<Ancillary>() as _;
    // SAFETY: what `message` points to outlives the call, with the lengths that it says, and is only read.
    let sent = unsafe { libc::sendmsg(stream.as_fd().as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Reads one record of another type than data, or data, and tells which; no bytes at all are the end.
pub(crate) fn receive_record(
    stream: &impl AsFd,
    room: &mut [u8],
) -> io::Result<(Option<TlsGetRecordType>, usize)> {
    let mut space = cmsg_space!(u8);
    let mut pieces = [IoSliceMut::new(room)];
    let fd = stream.as_fd().as_raw_fd();
    let message = recvmsg::<()>(fd, &mut pieces, Some(&mut space), MsgFlags::empty())?;
    let content = message.cmsgs()?.find_map(|told| match told {
        ControlMessageOwned::TlsGetRecordType(content) => Some(content),
        _ => None,
    });
    Ok((content, message.bytes))
}

/// How many bytes TCP has taken of what was sent on a connection, from the same start each time. It is an error if acknowledgements
/// come too fast to tell.
pub(crate) fn taken_by_tcp(stream: &impl AsFd) -> io::Result<u64> {
    for _ in 0..LOOKS {
        let acknowledged = tcp_info(stream)?.tcpi_bytes_acked;
        let queued = unacknowledged(stream)?;
        if tcp_info(stream)?.tcpi_bytes_acked == acknowledged {
            return Ok(acknowledged + queued);
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Bytes that TCP keeps until they are acknowledged (tcp(7), `SIOCOUTQ`).
pub(crate) fn unacknowledged(stream: &impl AsFd) -> io::Result<u64> {
    let mut queued: libc::c_int = 0;
    // SAFETY: the request writes one integer.
    let result = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
    if result == 0 { Ok(u64::from(queued.unsigned_abs())) } else { Err(io::Error::last_os_error()) }
}
