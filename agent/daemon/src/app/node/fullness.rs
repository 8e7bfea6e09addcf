//! Maps that are too small for this node or its cluster: the log, readiness and metrics tell of them as long as they are.

use super::enrolment::Enrolment;
use crate::{
    instance::{Gate, Readiness},
    telemetry::Telemetry,
};

/// Watches for what does not fit.
pub(super) struct FullnessWatch {
    telemetry: Telemetry,
    readiness: Readiness,
    /// Held while something does not fit.
    gate: Option<Gate>,
    /// What was told last.
    told: (Option<String>, usize),
}

impl FullnessWatch {
    pub(super) fn new(telemetry: Telemetry, readiness: Readiness) -> Self {
        Self { telemetry, readiness, gate: None, told: (None, 0) }
    }

    /// Tells of it when it differs from before.
    pub(super) fn look(&mut self, enrolment: &Enrolment) {
        let (shortfall, kept_out) = (enrolment.shortfall(), enrolment.kept_out());
        if (self.told.0.as_deref(), self.told.1) == (shortfall, kept_out) {
            return;
        }
        match (shortfall, &self.told.0) {
            (Some(why), _) => tracing::error!(
                why,
                "all that this node's pods of the mesh dial is captured, as the list of what should be does not fit; \
                 give the agent a larger map by --map-entries DESTINATIONS=N"
            ),
            (None, Some(_)) => tracing::info!("only what should be is captured again"),
            (None, None) => {}
        }
        if kept_out > 0 {
            tracing::error!(kept_out, "a full map keeps pods of this node out of the mesh; see ambit status");
        }
        self.telemetry.capture_fullness(shortfall.is_some(), kept_out);
        self.gate = amiss(shortfall, kept_out).map(|why| self.readiness.gate_because("capture", why));
        self.told = (shortfall.map(str::to_owned), kept_out);
    }
}

/// What does not fit, and what to do about it.
fn amiss(shortfall: Option<&str>, kept_out: usize) -> Option<String> {
    let everything = shortfall.map(|why| {
        format!(
            "all that this node's pods of the mesh dial is captured: {why}; give the agent a larger map by --map-entries \
             DESTINATIONS=N"
        )
    });
    let kept = (kept_out > 0).then(|| {
        format!(
            "a full eBPF map keeps {kept_out} pods of this node out of the mesh; their own problems name it"
        )
    });
    match (everything, kept) {
        (None, None) => None,
        (everything, kept) => Some([everything, kept].into_iter().flatten().collect::<Vec<_>>().join("; ")),
    }
}
