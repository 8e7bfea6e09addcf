//! Removes what runs that were killed, or kept on purpose, have left on the machine.

use anyhow::Result;

use crate::{
    console::Console,
    sandbox::{Kept, sweep_abandoned},
};

/// Runs the verb.
pub(super) fn run() -> Result<()> {
    let console = Console::new(false);
    match sweep_abandoned(Kept::Sweep)? {
        0 => console.line("nothing to clean"),
        runs => console.line(format_args!("cleaned what {runs} runs had left")),
    }
    Ok(())
}
