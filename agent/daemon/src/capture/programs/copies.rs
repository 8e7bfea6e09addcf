//! Copies of the pods' programs: one for each pod, and one ahead, which the next pod needs not wait for.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::{Ebpf, EbpfLoader};
use tokio::{task::spawn_blocking, time::sleep};

use super::load_copy;
use crate::capture::{CaptureError, give_back_heap};

/// How long no pod may have come before a copy is made for the next one: many at a time each make their own, and do not wait for it.
const QUIET: Duration = Duration::from_millis(100);

/// Makes them.
pub(super) struct Copies(Arc<Shared>);

struct Shared {
    workshop: Mutex<Workshop>,
    /// Copies that were taken.
    taken: AtomicU64,
}

struct Workshop {
    /// Kept, because making one reads the kernel's types: many milliseconds.
    loader: EbpfLoader<'static>,
    spare: Option<Ebpf>,
    /// The pinned maps are gone.
    ended: bool,
}

impl Copies {
    pub(super) fn by(loader: EbpfLoader<'static>) -> Self {
        let workshop = Mutex::new(Workshop { loader, spare: None, ended: false });
        Self(Arc::new(Shared { workshop, taken: AtomicU64::new(0) }))
    }

    /// A copy, loaded and not attached. The next one is made when nobody waits for this. Must run inside a tokio runtime.
    pub(super) fn next(&self) -> Result<Ebpf, CaptureError> {
        let copy = {
            let mut workshop = self.0.lock();
            match workshop.spare.take() {
                Some(spare) => spare,
                None => load_copy(&mut workshop.loader)?,
            }
        };
        let number = self.0.taken.fetch_add(1, Ordering::Relaxed) + 1;
        let shared = self.0.clone();
        tokio::spawn(async move {
            sleep(QUIET).await;
            if shared.taken.load(Ordering::Relaxed) == number {
                // What becomes of it shows when it is taken.
                drop(spawn_blocking(move || shared.make_one()).await);
            }
        });
        Ok(copy)
    }

    /// Makes no more ahead, as `removed` takes away the maps; nobody makes one meanwhile.
    pub(super) fn end(&self, removed: impl FnOnce()) {
        let mut workshop = self.0.lock();
        workshop.ended = true;
        workshop.spare = None;
        removed();
    }
}

impl Shared {
    fn make_one(&self) {
        let mut workshop = self.lock();
        if workshop.ended || workshop.spare.is_some() {
            return;
        }
        match load_copy(&mut workshop.loader) {
            Ok(copy) => workshop.spare = Some(copy),
            Err(error) => tracing::debug!(%error, "the next pod's programs cannot be loaded ahead"),
        }
        drop(workshop);
        // Reading the object takes several times what is left of it.
        give_back_heap();
    }

    fn lock(&self) -> MutexGuard<'_, Workshop> {
        // A panic cannot leave it half changed.
        self.workshop.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
