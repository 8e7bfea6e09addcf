//! The traffic secrets of a connection (RFC 8446 §7.1): caught as rustls derives them, and the keys that are made of them, now and
//! after each renewal. That is all that has to be kept of a handshake.
//!
//! Promises that a secret goes nowhere but to who drives the handshake on this thread, that it is the one behind the keys that rustls
//! has agreed on, and that it is wiped out when it is dropped.

use std::{cell::RefCell, marker::PhantomData, mem};

use aws_lc_rs::{
    aead::{AES_128_GCM, AES_256_GCM, Algorithm, CHACHA20_POLY1305, NONCE_LEN},
    constant_time::verify_slices_are_equal,
    hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk},
};
use rustls::{ConnectionTrafficSecrets, KeyLog};
use zeroize::Zeroizing;

use super::TunnelError;

/// Bytes of the longest secret: a SHA-384 hash.
const LONGEST_SECRET: usize = 48;
/// Bytes of the longest key.
const LONGEST_KEY: usize = 32;

/// A cipher of TLS 1.3, which stands for the hash of its suite as well (RFC 8446 §B.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Cipher {
    fn hash(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => HKDF_SHA256,
            Self::Aes256Gcm => HKDF_SHA384,
        }
    }

    pub(super) fn aead(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }
}

/// The keys of one direction until they are renewed.
pub(super) struct TrafficKeys {
    cipher: Cipher,
    key: Zeroizing<[u8; LONGEST_KEY]>,
    iv: [u8; NONCE_LEN],
}

impl TrafficKeys {
    /// Such that protect nothing, for trying.
    pub(super) fn worthless(cipher: Cipher, number: u8) -> Self {
        Self { cipher, key: [number; LONGEST_KEY].into(), iv: [number; NONCE_LEN] }
    }

    pub(super) fn cipher(&self) -> Cipher {
        self.cipher
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key[..self.cipher.aead().key_len()]
    }

    /// What nonces are made of (RFC 8446 §5.3).
    pub(super) fn iv(&self) -> &[u8; NONCE_LEN] {
        &self.iv
    }
}

/// `client_application_traffic_secret_N` or `server_application_traffic_secret_N`.
#[derive(Clone)]
pub(super) struct TrafficSecret {
    cipher: Cipher,
    bytes: Zeroizing<[u8; LONGEST_SECRET]>,
}

impl TrafficSecret {
    /// The secret that was caught for one direction; an error unless it is the one that `keys` were made of.
    fn behind(keys: &ConnectionTrafficSecrets, caught: Option<Caught>) -> Result<Self, TunnelError> {
        let cipher = match keys {
            ConnectionTrafficSecrets::Aes128Gcm { .. } => Cipher::Aes128Gcm,
            ConnectionTrafficSecrets::Aes256Gcm { .. } => Cipher::Aes256Gcm,
            ConnectionTrafficSecrets::Chacha20Poly1305 { .. } => Cipher::ChaCha20Poly1305,
            _ => return Err(broken("a cipher suite without known keys")),
        };
        let Some(caught) = caught.filter(|caught| caught.len == cipher.hash().len()) else {
            return Err(broken("a handshake without traffic secrets"));
        };
        let secret = Self { cipher, bytes: caught.bytes };
        if secret.makes(keys)? { Ok(secret) } else { Err(broken("traffic secrets of another handshake")) }
    }

    /// Whether `keys` are made of it.
    pub(super) fn makes(&self, keys: &ConnectionTrafficSecrets) -> Result<bool, TunnelError> {
        let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = keys
        else {
            return Ok(false);
        };
        let own = self.keys()?;
        Ok(verify_slices_are_equal(own.key(), key.as_ref()).is_ok() && own.iv() == iv.as_ref())
    }

    /// The keys that are made of it (RFC 8446 §7.3).
    pub(super) fn keys(&self) -> Result<TrafficKeys, TunnelError> {
        let mut keys = TrafficKeys { cipher: self.cipher, key: Default::default(), iv: [0; NONCE_LEN] };
        self.expand(b"key", &mut keys.key[..self.cipher.aead().key_len()])?;
        self.expand(b"iv", &mut keys.iv)?;
        Ok(keys)
    }

    /// The secret that follows when keys are renewed (RFC 8446 §7.2).
    pub(super) fn next(&self) -> Result<Self, TunnelError> {
        let mut next = Self { cipher: self.cipher, bytes: Zeroizing::new([0; LONGEST_SECRET]) };
        self.expand(b"traffic upd", &mut next.bytes[..self.cipher.hash().len()])?;
        Ok(next)
    }

    /// HKDF-Expand-Label without a context (RFC 8446 §7.1).
    fn expand(&self, label: &[u8], out: &mut [u8]) -> Result<(), TunnelError> {
        const PREFIX: &[u8] = b"tls13 ";
        let len = (out.len() as u16).to_be_bytes();
        let label_len = [(PREFIX.len() + label.len()) as u8];
        let info: [&[u8]; 5] = [&len, &label_len, PREFIX, label, &[0]];
        let hash = self.cipher.hash();
        let secret = Prk::new_less_safe(hash, &self.bytes[..hash.len()]);
        let expanded = secret.expand(&info, Bytes(out.len())).and_then(|expanded| expanded.fill(out));
        expanded.map_err(|_| broken("a secret that cannot be expanded"))
    }
}

fn broken(what: &str) -> TunnelError {
    rustls::Error::General(what.to_owned()).into()
}

/// How much is expanded.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

/// The first secrets of both directions, once a handshake has got so far.
#[derive(Default)]
pub(super) struct Secrets {
    client: Option<Caught>,
    server: Option<Caught>,
}

/// A secret whose hash is not known yet.
struct Caught {
    len: usize,
    bytes: Zeroizing<[u8; LONGEST_SECRET]>,
}

impl Secrets {
    /// The secrets behind the keys of client and server.
    pub(super) fn behind(
        self,
        client: &ConnectionTrafficSecrets,
        server: &ConnectionTrafficSecrets,
    ) -> Result<(TrafficSecret, TrafficSecret), TunnelError> {
        Ok((TrafficSecret::behind(client, self.client)?, TrafficSecret::behind(server, self.server)?))
    }

    /// Catches what is derived on this thread until what is returned is dropped. Nothing may be awaited meanwhile.
    pub(super) fn listen(&mut self) -> Listening<'_> {
        CAUGHT.set(Some(mem::take(self)));
        Listening { secrets: self, _on_this_thread: PhantomData }
    }
}

thread_local! {
    /// While somebody listens.
    static CAUGHT: RefCell<Option<Secrets>> = const { RefCell::new(None) };
}

/// See [`Secrets::listen`].
pub(super) struct Listening<'a> {
    secrets: &'a mut Secrets,
    _on_this_thread: PhantomData<*const ()>,
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        *self.secrets = CAUGHT.take().unwrap_or_default();
    }
}

/// What rustls tells secrets to. It is no log: nothing of it is written anywhere, and who does not listen gets to know nothing.
#[derive(Debug)]
pub(super) struct Ear;

impl KeyLog for Ear {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        let mut bytes = Zeroizing::new([0; LONGEST_SECRET]);
        let Some(room) = bytes.get_mut(..secret.len()) else { return };
        room.copy_from_slice(secret);
        let caught = Caught { len: secret.len(), bytes };
        CAUGHT.with_borrow_mut(|secrets| match (secrets, label) {
            (Some(secrets), CLIENT) => secrets.client = Some(caught),
            (Some(secrets), SERVER) => secrets.server = Some(caught),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        [CLIENT, SERVER].contains(&label) && CAUGHT.with_borrow(Option::is_some)
    }
}

/// As [`KeyLog`] calls them.
const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

#[cfg(test)]
impl TrafficSecret {
    /// The client's in RFC 8448 §3.
    pub(super) fn known() -> Self {
        const SECRET: &[u8] = b"9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";
        let mut bytes = Zeroizing::new([0; LONGEST_SECRET]);
        bytes[..32].copy_from_slice(&data_encoding::HEXLOWER.decode(SECRET).unwrap());
        Self { cipher: Cipher::Aes128Gcm, bytes }
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn keys_are_those_of_rfc_8448() {
        let keys = TrafficSecret::known().keys().unwrap();
        assert_eq!(HEXLOWER.encode(keys.key()), "17422dda596ed5d9acd890e3c63f5051");
        assert_eq!(HEXLOWER.encode(keys.iv()), "5b78923dee08579033e523d9");
    }

    #[test]
    fn only_who_listens_gets_to_know_a_secret() {
        let tell = || {
            for (label, byte) in [(CLIENT, 1), (SERVER, 2), ("EXPORTER_SECRET", 3)] {
                Ear.log(label, &[], &[byte; 32]);
            }
        };
        let first = |caught: &Option<Caught>| caught.as_ref().map(|caught| caught.bytes[0]);
        tell();
        assert!(!Ear.will_log(CLIENT));
        let mut secrets = Secrets::default();
        let listening = secrets.listen();
        assert!(Ear.will_log(CLIENT) && Ear.will_log(SERVER) && !Ear.will_log("EXPORTER_SECRET"));
        std::thread::spawn(tell).join().unwrap();
        Ear.log(CLIENT, &[], &[0; LONGEST_SECRET + 1]);
        drop(listening);
        assert_eq!((first(&secrets.client), first(&secrets.server)), (None, None));
        let listening = secrets.listen();
        tell();
        drop(listening);
        tell();
        assert_eq!((first(&secrets.client), first(&secrets.server)), (Some(1), Some(2)));
        // It is kept from one step of a handshake to the next.
        drop(secrets.listen());
        assert_eq!((first(&secrets.client), first(&secrets.server)), (Some(1), Some(2)));
        assert!(!Ear.will_log(SERVER));
    }
}
