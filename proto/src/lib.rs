//! ambit's protobuf definitions and the code generated from them.
//!
//! The `.proto` files are the source; `src/gen` is written from them by `tests/generated.rs`, in Rust alone: nobody
//! needs protoc. That test also fails when the two differ.

/// The administrative API of an agent.
pub mod admin {
    /// Version 1: `ambit.admin.v1`.
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        clippy::unwrap_used,
        reason = "generated code follows the generator's taste, not ours"
    )]
    pub mod v1 {
        include!("gen/ambit.admin.v1.rs");
    }
}

/// What an agent answers about policies.
pub mod policy {
    /// Version 1: `ambit.policy.v1`.
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        clippy::unwrap_used,
        reason = "generated code follows the generator's taste, not ours"
    )]
    pub mod v1 {
        include!("gen/ambit.policy.v1.rs");
    }
}

/// Envoy's API, as far as ambit speaks it.
pub mod envoy {
    /// External authorization: `envoy.service.auth.v3`.
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        clippy::unwrap_used,
        reason = "generated code follows the generator's taste, not ours"
    )]
    pub mod auth {
        include!("gen/envoy.service.auth.v3.rs");
    }
}

/// SPIRE's APIs.
pub mod spire {
    /// The Delegated Identity API: `spire.api.agent.delegatedidentity.v1`.
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        clippy::unwrap_used,
        reason = "generated code follows the generator's taste, not ours"
    )]
    pub mod delegatedidentity {
        include!("gen/spire.api.agent.delegatedidentity.v1.rs");
    }
}

/// Istio's API, as far as ambit speaks it.
pub mod istio {
    /// The certificate service: `istio.v1.auth`.
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        clippy::unwrap_used,
        reason = "generated code follows the generator's taste, not ours"
    )]
    pub mod auth {
        include!("gen/istio.v1.auth.rs");
    }
}

/// Where spans are sent: the OpenTelemetry Protocol's `opentelemetry.proto.collector.trace.v1`.
pub mod opentelemetry {
    /// Spans, with what they are made of.
    #[allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        clippy::unwrap_used,
        reason = "generated code follows the generator's taste, not ours"
    )]
    pub mod trace {
        include!("gen/opentelemetry.proto.collector.trace.v1.rs");
    }
}
