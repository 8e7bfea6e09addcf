//! How many directions of tunnels the kernel has taken the TLS records of.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    direction: &'static str,
    by: &'static str,
}

/// Counts both directions of tunnels where records are handed to the kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct KernelTlsCounts {
    /// What is sent.
    pub(crate) sending: Taken,
    /// What is received.
    pub(crate) receiving: Taken,
}

/// One direction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    /// Sealed or opened by the kernel.
    pub(crate) handed_over: Counter,
    /// Left to the agent, as the kernel did not take them.
    pub(crate) kept: Counter,
}

impl Taken {
    /// Counts one.
    pub(crate) fn tell(&self, handed_over: bool) {
        if handed_over { &self.handed_over } else { &self.kept }.inc();
    }
}

impl KernelTlsCounts {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let family = Family::<Labels, Counter>::default();
        let counter = |direction, by| family.get_or_create_owned(&Labels { direction, by });
        let taken = |direction| Taken {
            handed_over: counter(direction, "kernel"),
            kept: counter(direction, "agent"),
        };
        let counts = Self { sending: taken("sent"), receiving: taken("received") };
        registry.register(
            "ambit_kernel_tls",
            "Directions of tunnels whose TLS records were to be sealed or opened by the kernel, and who does it",
            family,
        );
        counts
    }
}
