//! The bounded queue between those who log and the thread that writes.

use std::{
    io::{self, BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Lines that may wait.
const QUEUE: usize = 4_096;
/// How long lines gather after others have been written: a busy agent wakes the thread a hundred times a second at most.
const GATHER: Duration = Duration::from_millis(10);
/// How long the end of the process waits for a reader of the log.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Starts the thread that writes to `out`. It calls `on_loss` with the number of lines that found no room.
pub(super) fn start(
    out: impl Write + Send + 'static,
    on_loss: impl Fn(u64) + Send + 'static,
) -> io::Result<(LogWriter, LogGuard)> {
    start_bounded(out, on_loss, QUEUE)
}

fn start_bounded(
    out: impl Write + Send + 'static,
    on_loss: impl Fn(u64) + Send + 'static,
    lines: usize,
) -> io::Result<(LogWriter, LogGuard)> {
    let (sender, receiver) = sync_channel(lines);
    let dropped = Arc::new(AtomicU64::new(0));
    let counter = dropped.clone();
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        write_lines(out, &receiver, || {
            let lost = counter.swap(0, Ordering::Relaxed);
            if lost > 0 {
                on_loss(lost);
            }
        });
    })?;
    Ok((LogWriter { sender: sender.clone(), dropped }, LogGuard { sender }))
}

/// Takes one line a write and never blocks.
#[derive(Clone, Debug)]
pub(super) struct LogWriter {
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Message::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes out the rest of the log when dropped.
#[derive(Debug)]
#[must_use = "dropping the guard ends the log"]
pub(crate) struct LogGuard {
    sender: SyncSender<Message>,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_WITHIN;
        let (done, flushed) = sync_channel(1);
        let mut message = Message::Flush(done);
        loop {
            match self.sender.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => message = back,
                Err(_) => return,
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = flushed.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

fn write_lines(out: impl Write, queue: &Receiver<Message>, report_losses: impl Fn()) {
    let mut out = BufWriter::with_capacity(32 * 1024, out);
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            // A log that cannot be written is lost; there is no other place to say so.
            let _ = match message {
                Message::Line(line) => out.write_all(&line),
                Message::Flush(done) => {
                    let flushed = out.flush();
                    let _ = done.send(());
                    flushed
                }
            };
            next = queue.try_recv().ok();
        }
        let _ = out.flush();
        report_losses();
        thread::sleep(GATHER);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// A log file whose reader stalls until told to go on.
    #[derive(Clone, Default)]
    struct Slow(Arc<(Mutex<Gate>, Condvar)>);

    /// Whether the reader goes on, and what it has read.
    type Gate = (bool, Vec<u8>);

    impl Slow {
        fn open(&self) {
            self.0.0.lock().unwrap().0 = true;
            self.0.1.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().1.clone()).unwrap()
        }
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.1.wait_while(self.0.0.lock().unwrap(), |state| !state.0).unwrap();
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_queued_is_written_before_the_guard_is_gone() {
        let file = Slow::default();
        file.open();
        let (mut writer, guard) = start(file.clone(), |_| {}).unwrap();
        for n in 0..100 {
            writeln!(writer, "line {n}").unwrap();
        }
        drop(guard);
        assert_eq!(file.text().lines().count(), 100);
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_never_blocks() {
        let file = Slow::default();
        let (report, lost) = std::sync::mpsc::channel();
        let (mut writer, guard) = start_bounded(file.clone(), move |n| report.send(n).unwrap(), 4).unwrap();
        let line = vec![b'x'; 64 * 1024];
        for _ in 0..50 {
            assert_eq!(writer.write(&line).unwrap(), line.len());
        }
        file.open();
        let lost = usize::try_from(lost.recv_timeout(Duration::from_secs(5)).unwrap()).unwrap();
        drop(guard);
        assert_eq!(file.text().len(), (50 - lost) * line.len());
    }
}
