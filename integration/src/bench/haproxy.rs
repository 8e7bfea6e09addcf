//! Configuration of an HAProxy at one end of a data path.
//!
//! It has no check of a peer's URI names. The client checks the server's DNS name; the server looks for the client's SPIFFE ID,
//! with its tag and length, in the certificate as it stands.

use std::fmt::Write as _;

use super::{
    keys::Keys,
    proxies::{Forward, Side, Speaks},
};

/// The configuration of the proxy at `side`.
pub(super) fn configuration(side: Side, keys: &Keys, forwards: &[Forward], is_http: bool) -> String {
    let mut text = "global\n  maxconn 9000\n  \
        ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256\n  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256\n  \
        ssl-default-bind-options ssl-min-ver TLSv1.3\n  ssl-default-server-options ssl-min-ver TLSv1.3\n  \
        ssl-default-bind-curves X25519\n\
        defaults\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
        .to_owned();
    for way in forwards {
        let http = is_http && way.speaks != Speaks::Bytes;
        let (mode, h2) = (if http { "http" } else { "tcp" }, http && way.speaks == Speaks::Grpc);
        let (plain_h2, tls_h2) = if h2 { (" proto h2", " alpn h2") } else { ("", "") };
        let (own, peer) = match side {
            Side::Client => (&keys.client, &keys.server),
            Side::Server => (&keys.server, &keys.client),
        };
        let tls = format!(
            " ssl crt {} ca-file {} verify required{tls_h2}",
            own.both.display(),
            keys.roots.display()
        );
        let (bind, check, server) = match side {
            Side::Client => (plain_h2.to_owned(), String::new(), format!("{tls} verifyhost {}", peer.name)),
            Side::Server => (
                tls,
                format!(
                    "  tcp-request session reject unless {{ ssl_c_der,hex -m sub {} }}\n",
                    uri_name(&peer.identity)
                ),
                plain_h2.to_owned(),
            ),
        };
        // Writing into a String does not fail.
        let _ = write!(
            text,
            "listen {name}\n  mode {mode}\n  bind {listen}{bind}\n{check}  server app {target}{server}\n",
            name = way.name(),
            listen = way.listen,
            target = way.target,
        );
    }
    text
}

/// A URI among the subject alternative names as DER has it, in HAProxy's hexadecimal (RFC 5280, `[6] IA5String`).
fn uri_name(uri: &str) -> String {
    let bytes = [&[0x86, uri.len().to_le_bytes()[0]], uri.as_bytes()].concat();
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_uri_name_has_its_tag_and_length() {
        assert_eq!(super::uri_name("a:b"), "8603613A62");
    }
}
