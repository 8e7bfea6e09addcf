//! The way to the terminal.

use std::io::{self, ErrorKind, Write};

use anyhow::Context;

/// Writes to standard output. A reader that has gone away, such as `head`, is no error.
pub(super) fn emit(text: &str) -> anyhow::Result<()> {
    write_all(&mut io::stdout().lock(), text).context("cannot write to standard output")
}

/// Writes to standard output; answers whether its reader is still there.
pub(super) fn stream(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("cannot write to standard output"),
    }
}

/// Writes to standard error; where that fails there is nobody to tell.
pub(super) fn complain(text: &str) {
    let _ = write_all(&mut io::stderr().lock(), text);
}

fn write_all(out: &mut impl Write, text: &str) -> io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Gone(ErrorKind);

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_a_reader_that_left_is_forgiven() {
        assert!(write_all(&mut Gone(ErrorKind::BrokenPipe), "text").is_ok());
        assert!(write_all(&mut Gone(ErrorKind::StorageFull), "text").is_err());
    }
}
