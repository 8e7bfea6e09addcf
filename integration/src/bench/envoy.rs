//! Configuration of an Envoy at one end of a data path. Sizes and pools are Envoy's own defaults, but for the limit on
//! connections, which is too low for the loads.

use serde_json::{Value, json};

use super::{
    keys::{Keys, Leaf},
    proxies::{Forward, Side, Speaks},
    rules,
};

/// The bootstrap of the proxy at `side`.
pub(super) fn bootstrap(side: Side, keys: &Keys, forwards: &[Forward], is_http: bool) -> String {
    let listeners: Vec<Value> = forwards.iter().map(|way| listener(side, keys, way, is_http)).collect();
    let clusters: Vec<Value> = forwards.iter().map(|way| cluster(side, keys, way, is_http)).collect();
    json!({
        "node": { "id": side.name(), "cluster": "bench" },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
    .to_string()
}

fn listener(side: Side, keys: &Keys, way: &Forward, is_http: bool) -> Value {
    let cluster = way.name();
    // Requests are judged where the server is.
    let judges = (side == Side::Server).then(rules::envoy_filter);
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    });
    let filters: Vec<Value> = judges.into_iter().chain([router]).collect();
    let filter = match (is_http, way.speaks) {
        (true, Speaks::Http | Speaks::Grpc) => json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": cluster,
                "route_config": { "virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster, "timeout": "0s" } }],
                }] },
                "http_filters": filters,
            },
        }),
        _ => json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": cluster,
                "cluster": cluster,
            },
        }),
    };
    let mut chain = json!({ "filters": [filter] });
    if side == Side::Server {
        chain["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": tls(keys, &keys.server, &keys.client),
            },
        });
    }
    json!({ "name": cluster, "address": address(way.listen), "filter_chains": [chain] })
}

fn cluster(side: Side, keys: &Keys, way: &Forward, is_http: bool) -> Value {
    let mut cluster = json!({
        "name": way.name(),
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [{
            "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000,
        }] },
        "load_assignment": { "cluster_name": way.name(), "endpoints": [{
            "lb_endpoints": [{ "endpoint": { "address": address(way.target) } }],
        }] },
    });
    if is_http && way.speaks == Speaks::Grpc {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        });
    }
    if side == Side::Client {
        cluster["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": keys.server.name,
                "common_tls_context": tls(keys, &keys.client, &keys.server),
            },
        });
    }
    cluster
}

/// TLS 1.3 alone, of which BoringSSL takes AES-128-GCM first where the processor has AES instructions.
fn tls(keys: &Keys, own: &Leaf, peer: &Leaf) -> Value {
    json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": ["X25519"],
        },
        "tls_certificates": [{
            "certificate_chain": { "filename": own.certificate },
            "private_key": { "filename": own.key },
        }],
        "validation_context": {
            "trusted_ca": { "filename": keys.roots },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer.identity } }],
        },
    })
}

fn address(at: std::net::SocketAddrV4) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}
