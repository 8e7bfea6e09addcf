//! An issuer of tokens for tests: keys of its own, and a server that says what a test has it say.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
        EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
        RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaKeyPair,
        RsaPublicKeyComponents,
    },
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// A key that signs.
pub(in crate::jwt) struct Key {
    pub(in crate::jwt) id: &'static str,
    pub(in crate::jwt) algorithm: &'static str,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    Ecdsa(&'static str, EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Key {
    pub(in crate::jwt) fn new(id: &'static str, algorithm: &'static str) -> Self {
        let ecdsa = |curve, signing: &'static EcdsaSigningAlgorithm| {
            Pair::Ecdsa(curve, EcdsaKeyPair::generate(signing).unwrap())
        };
        let pair = match algorithm {
            "ES256" => ecdsa("P-256", &ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => ecdsa("P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
            "ES512" => ecdsa("P-521", &ECDSA_P521_SHA512_FIXED_SIGNING),
            "EdDSA" => Pair::Ed(Ed25519KeyPair::generate().unwrap()),
            _ => Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
        };
        Self { id, algorithm, pair }
    }

    /// As a set has it.
    pub(in crate::jwt) fn public(&self) -> Value {
        let text = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        match &self.pair {
            Pair::Rsa(pair) => {
                let RsaPublicKeyComponents::<Vec<u8>> { n, e } = pair.public_key().into();
                json!({"kty": "RSA", "kid": self.id, "n": text(&n), "e": text(&e)})
            }
            Pair::Ecdsa(curve, pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "crv": curve, "kid": self.id, "x": text(x), "y": text(y)})
            }
            Pair::Ed(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": text(pair.public_key().as_ref())})
            }
        }
    }

    /// A token of this key, with its name and algorithm in the header.
    pub(in crate::jwt) fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": self.algorithm, "kid": self.id}), claims)
    }

    pub(in crate::jwt) fn sign(&self, header: &Value, claims: &Value) -> String {
        let text = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let signed =
            format!("{}.{}", text(header.to_string().as_bytes()), text(claims.to_string().as_bytes()));
        let (random, bytes) = (SystemRandom::new(), signed.as_bytes());
        let signature = match &self.pair {
            Pair::Ecdsa(_, pair) => pair.sign(&random, bytes).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(bytes).as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let padding: &'static dyn aws_lc_rs::signature::RsaEncoding = match self.algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                pair.sign(padding, &random, bytes, &mut signature).unwrap();
                signature
            }
        };
        format!("{signed}.{}", text(&signature))
    }
}

/// A set of these keys.
pub(in crate::jwt) fn set(keys: &[&Key]) -> String {
    json!({"keys": keys.iter().map(|key| key.public()).collect::<Vec<_>>()}).to_string()
}

/// What the server says to one request.
#[derive(Clone, Debug)]
pub(in crate::jwt) enum Say {
    /// 200 and this.
    Body(String),
    /// Another head, and nothing more.
    Head(&'static str),
    /// Nothing, for ever.
    Nothing,
    /// Zeros without end.
    Endless,
}

/// A server on loopback that answers as it is told; the last answer for ever.
#[derive(Clone)]
pub(in crate::jwt) struct Server {
    pub(in crate::jwt) addr: SocketAddr,
    script: Arc<Mutex<VecDeque<Say>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(in crate::jwt) async fn start(script: impl IntoIterator<Item = Say>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            addr: listener.local_addr().unwrap(),
            script: Arc::new(Mutex::new(script.into_iter().collect())),
            asked: Arc::default(),
        };
        let serving = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serving.clone().answer(stream));
            }
        });
        server
    }

    async fn answer(self, mut stream: tokio::net::TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap();
        self.asked.lock().unwrap().push(head.split(' ').nth(1).unwrap_or_default().to_owned());
        let say = {
            let mut script = self.script.lock().unwrap();
            if script.len() > 1 { script.pop_front() } else { script.front().cloned() }
        };
        let text = match say.unwrap_or(Say::Nothing) {
            Say::Body(body) => {
                let body = body.replace("{server}", &self.addr.to_string());
                format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                )
            }
            Say::Head(head) => format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
            Say::Nothing => {
                std::future::pending::<()>().await;
                return;
            }
            Say::Endless => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                while stream.write_all(&[b' '; 4096]).await.is_ok() {}
                return;
            }
        };
        let _ = stream.write_all(text.as_bytes()).await;
    }

    /// Says these from here on.
    pub(in crate::jwt) fn say(&self, script: impl IntoIterator<Item = Say>) {
        *self.script.lock().unwrap() = script.into_iter().collect();
    }

    /// The paths that were asked for.
    pub(in crate::jwt) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}
