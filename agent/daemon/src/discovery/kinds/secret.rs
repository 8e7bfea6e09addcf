//! Secrets with certificates, of which only those count that a DestinationRule names.

use std::sync::Arc;

use ambit_core::{
    discovery::{Change as MeshChange, Settings, TlsSecret},
    model::ObjectName,
};
use data_encoding::BASE64;
use serde_json::Value;

use super::{FieldError, Valid, fields::cut};

/// The keys under which a Secret has what is looked for; the first that is there counts. The second of each is that of the
/// generic Secrets that Istio knows.
const CERTIFICATE: [&str; 2] = ["tls.crt", "cert"];
const KEY: [&str; 2] = ["tls.key", "key"];
const ROOTS: [&str; 2] = ["ca.crt", "cacert"];
const CRL: [&str; 2] = ["ca.crl", "crl"];

pub(super) fn read(name: ObjectName, object: &Value, _: &Settings) -> Result<Valid, FieldError> {
    let secret = TlsSecret {
        certificate: item(object, CERTIFICATE)?,
        key: item(object, KEY)?,
        roots: item(object, ROOTS)?,
        crl: item(object, CRL)?,
        name,
    };
    Ok(MeshChange::Secret(Arc::new(secret)).into())
}

/// What stands under one of the keys. No word of it is ever said in a message.
fn item(object: &Value, keys: [&str; 2]) -> Result<Option<Arc<[u8]>>, FieldError> {
    for key in keys {
        let part = |of: &str| object.get(of).and_then(|data| data.get(key));
        if let Some(text) = part("stringData").and_then(Value::as_str) {
            return Ok(Some(text.as_bytes().into()));
        }
        match part("data") {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => {
                let joined: String = text.split_ascii_whitespace().collect();
                let decoded = BASE64.decode(joined.as_bytes());
                return match decoded {
                    Ok(bytes) => Ok(Some(bytes.into())),
                    Err(_) => Err(FieldError::new(format!("data.{}", cut(key)), "is not base64")),
                };
            }
            Some(_) => return Err(FieldError::new(format!("data.{}", cut(key)), "is not a text")),
        }
    }
    Ok(None)
}
