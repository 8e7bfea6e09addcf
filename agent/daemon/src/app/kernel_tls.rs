//! Whether the kernel gets the TLS records of tunnels: as the operator wants it, and as this kernel can.

use anyhow::bail;

use crate::{
    config::KernelTls,
    tunnel::{Ability, probe},
};

/// What came of it.
pub(super) struct Decided {
    /// What the kernel can do; nothing is handed to it if `None`.
    pub(super) ability: Option<Ability>,
    /// For the status.
    pub(super) state: String,
}

/// Asks the kernel, unless it is off, and tells the log. It is an error where it must be and cannot.
pub(super) fn decide(wanted: KernelTls) -> anyhow::Result<Decided> {
    if wanted == KernelTls::Off {
        return Ok(Decided { ability: None, state: "off".to_owned() });
    }
    match (wanted, probe()) {
        (_, Ok(ability @ Ability::Whole)) => {
            tracing::info!("the kernel seals and opens the TLS records of tunnels");
            Ok(Decided { ability: Some(ability), state: "on".to_owned() })
        }
        (KernelTls::Force, Ok(ability)) => {
            tracing::warn!(
                "the kernel seals and opens the TLS records of tunnels, but cannot renew their keys: a connection that carries \
                 more than 128 GiB one way is broken off; Linux 6.14 or later can"
            );
            Ok(Decided { ability: Some(ability), state: "on, without new keys".to_owned() })
        }
        (KernelTls::Force, Err(why)) => bail!(
            "--kernel-tls force: {why}; load the module on the node (modprobe tls), take a kernel that has it, or use auto or off"
        ),
        (_, Ok(Ability::FirstKeysOnly)) => Ok(without(
            "it cannot go on under new keys, as Linux 6.14 or later can (--kernel-tls force has it all the same)",
        )),
        (_, Err(why)) => Ok(without(&why)),
    }
}

fn without(why: &str) -> Decided {
    tracing::info!(why, "the agent seals and opens the TLS records of tunnels, not the kernel");
    Decided { ability: None, state: format!("not available: {why}") }
}
