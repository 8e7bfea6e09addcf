//! Doors for the fuzz targets: what reads bytes that others have written, one function each. The identities' readers are public
//! in their own room.
//!
//! Promises of what is read stand here as assertions. No part of it is a stable interface.

use std::sync::LazyLock;

use serde::{Serialize, de::DeserializeOwned};
use tokio::runtime::{Builder, Runtime};

use crate::{
    cni,
    discovery::{self, Syntax},
    http, instance, jwt, tunnel,
};

/// The first bytes of an inbound connection, of which `cut` come before the others: what is decided by then stays.
pub fn first_bytes(bytes: &[u8], cut: usize) {
    let (early, all) = (tunnel::judge(&bytes[..cut.min(bytes.len())]), tunnel::judge(bytes));
    assert!(early.is_none() || early == all, "{early:?} by {cut} bytes became {all:?}");
}

/// A line from the CNI plugin to the agent, and one from the agent to the plugin.
pub fn cni_line(line: &[u8]) {
    round_trip::<cni::Request>(line);
    round_trip::<cni::Answer>(line);
}

fn round_trip<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(line: &[u8]) {
    let Ok(read) = cni::read::<T>(line) else { return };
    let mut written = serde_json::to_vec(&read).expect("what was read can be written");
    written.push(b'\n');
    assert_eq!(cni::read::<T>(&written).ok(), Some(read));
}

/// What a peer of the handover says before it leaves. Only these words, in this order, change hands.
pub fn handover(words: &[u8]) {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));
    // More fills the socket before anybody reads.
    let words = &words[..words.len().min(1024)];
    let heard = RUNTIME.block_on(instance::hear(words)).expect("a pair of sockets");
    assert_eq!(heard, (words.starts_with(b"AD"), words.starts_with(b"P")));
}

/// Two versions of a manifest, one after another, and its removal.
pub fn manifest(versions: [&[u8]; 2]) {
    for syntax in [Syntax::Yaml, Syntax::Json] {
        let problems = discovery::read_versions(&versions, syntax);
        assert_eq!(problems.last(), Some(&0), "what is gone has no problems: {problems:?}");
    }
}

/// What a client sends as HTTP/1, of which `cut` bytes come before the others.
pub fn request(bytes: &[u8], cut: usize) {
    http::examine(bytes, cut.min(bytes.len()));
}

/// Policies as they stand in a file, and what they make of connections to a pod.
pub fn policies(text: &[u8]) {
    discovery::judge_policies(text);
}

/// A set of keys in the first line, and behind it a token of an end user.
pub fn tokens(text: &[u8]) {
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    let (keys, token) = text.split_at(end);
    jwt::try_token(&String::from_utf8_lossy(keys), token.get(1..).unwrap_or_default());
}
