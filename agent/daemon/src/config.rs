//! What the operator asked for, typed: from flags, environment and a config file, completed with the defaults.
//!
//! Promises that each value is read by one rule whatever it comes from, and that an error says what would do. Leaves
//! reading the command line to the command line, and everything that is done with a configuration to the wiring.

mod agent;
mod ca;
mod error;
mod folders;
mod settings;
mod values;

pub(crate) use agent::{
    AgentConfig, AgentSettings, DEFAULT_BPF_ROOT, DEFAULT_RUN_DIR, IssuerConfig, Publication, SourceConfig,
    USUAL_STATE_DIR,
};
pub(crate) use ca::{CaConfig, CaServiceSettings};
pub(crate) use error::ConfigError;
pub(crate) use folders::CniDirs;
pub(crate) use values::{
    Bundling, BusyPolling, ConfigMapKey, DataplaneLabel, DnsName, ExtensionProviders, HttpTelemetry,
    KernelTls, LocalTraffic, Location, Namespace, ObjectName, OutboundPolicy, PostQuantum, TrustDomains,
    Wait, Window,
};
