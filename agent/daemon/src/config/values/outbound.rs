//! What connections to outside the mesh are held to.

use std::{fmt, str::FromStr};

/// Where pods may connect to, by the names of Istio's `outboundTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OutboundPolicy {
    /// Anywhere.
    #[default]
    AllowAny,
    /// To the cluster, and to what a ServiceEntry names.
    RegistryOnly,
}

impl FromStr for OutboundPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ALLOW_ANY" => Ok(Self::AllowAny),
            "REGISTRY_ONLY" => Ok(Self::RegistryOnly),
            _ => Err("use ALLOW_ANY or REGISTRY_ONLY".to_owned()),
        }
    }
}

impl fmt::Display for OutboundPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllowAny => "ALLOW_ANY",
            Self::RegistryOnly => "REGISTRY_ONLY",
        })
    }
}

/// Whether connections to outside are counted and logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Observe {
    /// They are left alone, and cost nothing.
    #[default]
    Off,
    /// They pass through the agent, as those into the mesh do.
    On,
}

impl FromStr for Observe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            _ => Err("use off or on".to_owned()),
        }
    }
}

impl fmt::Display for Observe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::On => "on",
        })
    }
}
