//! Progress and results for a person at a terminal or in a log. Leaves machine-readable output to the verbs.

use std::{
    fmt::Display,
    io::{IsTerminal as _, Write as _},
};

/// The answer of a verb for a program, on stdout.
#[allow(clippy::print_stdout, reason = "a command line tool answers on its standard output")]
pub fn answer(value: &serde_json::Value) {
    println!("{value:#}");
}

/// Where a verb talks to its user: on stdout, or on stderr when stdout carries JSON.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    to: To,
    colour: bool,
}

#[derive(Clone, Copy, Debug)]
enum To {
    Stdout,
    Stderr,
    #[cfg(test)]
    Nobody,
}

impl Console {
    /// A console; with `json`, stdout is left alone.
    pub fn new(json: bool) -> Self {
        let terminal = if json { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        let to = if json { To::Stderr } else { To::Stdout };
        Self { to, colour: terminal && std::env::var_os("NO_COLOR").is_none() }
    }

    /// A console that nobody reads.
    #[cfg(test)]
    pub(crate) fn silent() -> Self {
        Self { to: To::Nobody, colour: false }
    }

    /// A line.
    pub fn line(&self, text: impl Display) {
        self.write(format_args!("{text}\n"));
    }

    /// The heading of a step.
    pub fn heading(&self, text: impl Display) {
        self.line(format_args!("\n{}", self.paint("1", text)));
    }

    /// Something that held.
    pub fn good(&self, text: impl Display) {
        self.line(format_args!("  {} {text}", self.paint("32", "✓")));
    }

    /// `text` in an ANSI style (`1` bold, `31` red, `32` green), plain where no terminal shows it.
    pub fn paint(&self, style: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_string() }
    }

    fn write(&self, text: impl Display) {
        // A closed pipe is the reader's choice; the work goes on and cleans up after itself.
        let _ = match self.to {
            To::Stdout => {
                let mut stdout = std::io::stdout().lock();
                write!(stdout, "{text}").and_then(|()| stdout.flush())
            }
            To::Stderr => write!(std::io::stderr(), "{text}"),
            #[cfg(test)]
            To::Nobody => Ok(()),
        };
    }
}
