//! Which room may not name which paths.

/// Rooms that may know everyone, and that no room beside them may know.
pub(super) const WIRING: [&str; 2] = ["app", "cli"];

/// What the sources of a crate are held to.
pub(super) struct House {
    /// The crate's `src`, from the workspace root.
    pub(super) sources: &'static str,
    /// A room, and the paths it may not name: rooms of this crate as `crate::room`, others by their crate.
    pub(super) walls: &'static [(&'static str, &'static [&'static str])],
    /// Paths that no room may name.
    pub(super) nowhere: &'static [&'static str],
}

pub(super) const HOUSES: [House; 2] = [
    House {
        sources: "agent/core/src",
        walls: &[
            (
                "model",
                &["crate::policy", "crate::discovery", "crate::rotation", "crate::frame", "crate::reason"],
            ),
            (
                "reason",
                &["crate::model", "crate::policy", "crate::discovery", "crate::rotation", "crate::frame"],
            ),
            (
                "crowd",
                &[
                    "crate::model",
                    "crate::policy",
                    "crate::discovery",
                    "crate::rotation",
                    "crate::frame",
                    "crate::reason",
                ],
            ),
            ("policy", &["crate::discovery", "crate::frame", "crate::rotation"]),
            ("discovery", &["crate::policy", "crate::frame", "crate::rotation"]),
            ("diagnosis", &["crate::frame", "crate::rotation"]),
            ("rotation", &["crate::discovery", "crate::policy", "crate::frame"]),
            ("frame", &["crate::discovery", "crate::policy", "crate::rotation"]),
        ],
        nowhere: &[
            "tokio",
            "rand",
            "std::env",
            "std::fs",
            "std::net::TcpStream",
            "std::net::UdpSocket",
            "std::process",
        ],
    },
    House {
        sources: "agent/daemon/src",
        walls: &[
            (
                "capture",
                &["crate::identity", "crate::tunnel", "crate::proxy", "ambit_core::policy", "rustls"],
            ),
            ("proxy", &["rustls", "h2", "aya", "crate::identity", "ambit_core::frame"]),
            (
                "config",
                &[
                    "crate::proxy",
                    "crate::discovery",
                    "crate::tunnel",
                    "crate::reports",
                    "ambit_core::discovery",
                ],
            ),
            ("instance", &["crate::proxy", "crate::discovery", "crate::identity", "crate::tunnel"]),
            ("tunnel", &["crate::discovery", "ambit_core::discovery", "ambit_core::policy", "crate::proxy"]),
            (
                "identity",
                &[
                    "crate::proxy",
                    "crate::discovery",
                    "crate::tunnel",
                    "crate::capture",
                    "ambit_core::discovery",
                ],
            ),
            (
                "ca",
                &[
                    "crate::proxy",
                    "crate::discovery",
                    "crate::tunnel",
                    "crate::capture",
                    "ambit_core::discovery",
                    "ambit_core::policy",
                ],
            ),
            ("discovery", &["crate::proxy", "crate::identity", "crate::tunnel", "crate::capture"]),
            ("diagnosis", &["crate::proxy", "crate::identity", "crate::tunnel", "crate::capture"]),
            (
                "cni",
                &[
                    "crate::proxy",
                    "crate::discovery",
                    "crate::tunnel",
                    "crate::capture",
                    "crate::identity",
                    "ambit_core::policy",
                    "aya",
                ],
            ),
            (
                "reports",
                &["crate::proxy", "crate::identity", "crate::tunnel", "crate::capture", "ambit_core::policy"],
            ),
            (
                "cluster",
                &[
                    "crate::proxy",
                    "crate::identity",
                    "crate::tunnel",
                    "crate::capture",
                    "crate::discovery",
                    "ambit_core::discovery",
                    "ambit_core::policy",
                ],
            ),
            (
                "files",
                &[
                    "ambit_core",
                    "crate::admin",
                    "crate::ca",
                    "crate::capture",
                    "crate::cluster",
                    "crate::cni",
                    "crate::discovery",
                    "crate::identity",
                    "crate::proxy",
                    "crate::reports",
                    "crate::telemetry",
                    "crate::tunnel",
                ],
            ),
            (
                "clients",
                &[
                    "ambit_core",
                    "crate::admin",
                    "crate::ca",
                    "crate::capture",
                    "crate::cluster",
                    "crate::cni",
                    "crate::discovery",
                    "crate::identity",
                    "crate::proxy",
                    "crate::reports",
                    "crate::telemetry",
                    "crate::tunnel",
                ],
            ),
            (
                "jwt",
                &["crate::proxy", "crate::capture", "crate::discovery", "crate::identity", "crate::tunnel"],
            ),
            ("dns", &["crate::proxy", "crate::tunnel", "crate::identity", "ambit_core::policy"]),
            ("authz", &["crate::proxy", "crate::capture", "crate::discovery", "crate::identity"]),
            ("http", &["crate::capture", "crate::discovery", "crate::identity"]),
            ("admin", &["crate::proxy", "crate::tunnel", "crate::capture", "ambit_core::policy"]),
            (
                // Every room but those whose settings it fills in: identity, ca, telemetry.
                "config",
                &[
                    "crate::admin",
                    "crate::capture",
                    "crate::cluster",
                    "crate::cni",
                    "crate::discovery",
                    "crate::instance",
                    "crate::proxy",
                    "crate::reports",
                    "crate::tunnel",
                    "ambit_core::discovery",
                    "ambit_core::policy",
                ],
            ),
            ("instance", &["crate::proxy", "crate::discovery", "crate::identity"]),
            ("telemetry", &["crate::proxy", "crate::tunnel", "crate::capture", "ambit_core::policy"]),
        ],
        nowhere: &[],
    },
];
