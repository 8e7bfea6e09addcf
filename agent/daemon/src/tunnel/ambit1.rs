//! The dialect `ambit/1`: TLS 1.3 with the frames of [`ambit_core::frame`] in its records, one stream at a time on a
//! connection. rustls does handshakes and verification; records are sealed and opened here, in place and in batches.

mod handshake;
mod link;
mod pieces;
mod receiver;
mod record;
mod sender;
mod stream;

pub(super) use self::{
    handshake::{Verify, accept, connect},
    link::Link,
    record::{RECORD_LEN, RECORDS},
    stream::Stream,
};
