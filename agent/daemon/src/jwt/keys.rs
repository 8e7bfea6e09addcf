//! An issuer's keys (JSON Web Key Set, RFC 7517), and the signatures that they have made. Cryptography is the libraries' affair.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, EcdsaVerificationAlgorithm,
    ParsedPublicKey,
};
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde_json::Value;

use super::{
    failure::Failure,
    token::{Algorithm, Unverified},
};

/// A set that could make a request expensive is none.
const MAX_KEYS: usize = 100;
/// Bytes of an RSA modulus that the cryptography takes.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;

/// The keys of an issuer that can verify signatures; at least one.
#[derive(Debug)]
pub(super) struct KeySet(Vec<Key>);

/// Why something is no set of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadKeys {
    #[error("it is not JSON with a list named keys")]
    NoSet,
    #[error("it has {0} keys, more than {MAX_KEYS}")]
    TooMany(usize),
    #[error(
        "none of its {0} keys can verify tokens: RSA keys of 2048 bits or more, EC keys on P-256, P-384 or P-521, and Ed25519 \
         keys can"
    )]
    NoneOfUse(usize),
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// The algorithm that it says it is for.
    algorithm: Option<String>,
    public: Public,
}

#[derive(Debug)]
enum Public {
    Rsa(DecodingKey),
    P256(DecodingKey),
    P384(DecodingKey),
    /// Which the token library does not know.
    P521(ParsedPublicKey),
    Ed25519(DecodingKey),
}

#[derive(Deserialize)]
struct Written {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a set. Keys of other kinds, and for other uses, are left out.
    pub(super) fn parse(text: &[u8]) -> Result<Self, BadKeys> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }

        let Set { keys: written } = serde_json::from_slice(text).map_err(|_| BadKeys::NoSet)?;
        let count = written.len();
        if count > MAX_KEYS {
            return Err(BadKeys::TooMany(count));
        }
        let keys: Vec<Key> = written.into_iter().filter_map(Key::read).collect();
        if keys.is_empty() { Err(BadKeys::NoneOfUse(count)) } else { Ok(Self(keys)) }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether one of the keys has signed the token.
    pub(super) fn verify(&self, token: &Unverified<'_>) -> Result<(), Failure> {
        let mut failure = Failure::NoKey;
        for key in self.0.iter().filter(|key| key.may_sign(token)) {
            if key.has_signed(token) {
                return Ok(());
            }
            failure = Failure::Signature;
        }
        Err(failure)
    }
}

impl Key {
    fn read(value: Value) -> Option<Self> {
        let written: Written = serde_json::from_value(value).ok()?;
        let for_signatures = written.purpose.as_deref().is_none_or(|purpose| purpose == "sig");
        let verifies =
            written.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|op| op == "verify"));
        if !for_signatures || !verifies {
            return None;
        }
        let public = Public::read(&written)?;
        Some(Self { id: written.kid, algorithm: written.alg, public })
    }

    /// Whether it may be the one that the token names. Without a name on either side that is open.
    fn may_sign(&self, token: &Unverified<'_>) -> bool {
        let named = match (&self.id, &token.key_id) {
            (Some(own), Some(wanted)) => own.is_empty() || wanted.is_empty() || own == wanted,
            _ => true,
        };
        named && self.algorithm.as_deref().is_none_or(|own| own == token.algorithm.name())
    }

    fn has_signed(&self, token: &Unverified<'_>) -> bool {
        use jsonwebtoken::Algorithm as Known;

        let (key, algorithm) = match (&self.public, token.algorithm) {
            (Public::Rsa(key), Algorithm::Rs256) => (key, Known::RS256),
            (Public::Rsa(key), Algorithm::Rs384) => (key, Known::RS384),
            (Public::Rsa(key), Algorithm::Rs512) => (key, Known::RS512),
            (Public::Rsa(key), Algorithm::Ps256) => (key, Known::PS256),
            (Public::Rsa(key), Algorithm::Ps384) => (key, Known::PS384),
            (Public::Rsa(key), Algorithm::Ps512) => (key, Known::PS512),
            (Public::P256(key), Algorithm::Es256) => (key, Known::ES256),
            (Public::P384(key), Algorithm::Es384) => (key, Known::ES384),
            (Public::Ed25519(key), Algorithm::EdDsa) => (key, Known::EdDSA),
            (Public::P521(key), Algorithm::Es512) => {
                let signature = BASE64URL_NOPAD.decode(token.signature.as_bytes());
                return signature
                    .is_ok_and(|signature| key.verify_sig(token.signed.as_bytes(), &signature).is_ok());
            }
            _ => return false,
        };
        jsonwebtoken::crypto::verify(token.signature, token.signed.as_bytes(), key, algorithm)
            .unwrap_or(false)
    }
}

impl Public {
    fn read(written: &Written) -> Option<Self> {
        let bytes = |part: &Option<String>| BASE64URL_NOPAD.decode(part.as_deref()?.as_bytes()).ok();
        match (&*written.kty, written.crv.as_deref()) {
            ("RSA", _) => {
                let (modulus, exponent) = (bytes(&written.n)?, bytes(&written.e)?);
                let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
                let fits = MODULUS.contains(&(modulus.len() - zeros)) && (1..=8).contains(&exponent.len());
                fits.then(|| Self::Rsa(DecodingKey::from_rsa_raw_components(&modulus[zeros..], &exponent)))
            }
            ("OKP", Some("Ed25519")) => {
                let key = bytes(&written.x).filter(|key| key.len() == 32)?;
                Some(Self::Ed25519(DecodingKey::from_ed_der(&key)))
            }
            ("EC", Some(curve)) => {
                let point = [&[4][..], &bytes(&written.x)?, &bytes(&written.y)?].concat();
                let on = |algorithm: &'static EcdsaVerificationAlgorithm| {
                    ParsedPublicKey::new(algorithm, &point).ok()
                };
                match curve {
                    "P-256" => {
                        on(&ECDSA_P256_SHA256_FIXED).map(|_| Self::P256(DecodingKey::from_ec_der(&point)))
                    }
                    "P-384" => {
                        on(&ECDSA_P384_SHA384_FIXED).map(|_| Self::P384(DecodingKey::from_ec_der(&point)))
                    }
                    "P-521" => on(&ECDSA_P521_SHA512_FIXED).map(Self::P521),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}
