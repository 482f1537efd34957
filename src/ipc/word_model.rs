//! A word that loom can run, with a kernel's futex of its own.

use std::collections::HashMap;
use std::time::Duration;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Condvar, Mutex};
use nix::errno::Errno;

use super::word::Word;

/// Sleeps have no end in models: a wake-up that is lost is a deadlock, which loom reports. Only an
/// impatient word's sleeps end at once, as if the time was over.
#[derive(Debug)]
pub struct ModelWord {
    value: AtomicU64,
    kernel: Mutex<Kernel>,
    bell: Condvar,
    impatient: bool,
}

/// Sleepers in the order in which they came, and those that have been woken.
#[derive(Debug, Default)]
struct Kernel {
    next: u64,
    asleep: Vec<u64>,
    awake: HashMap<u64, ()>,
}

impl ModelWord {
    pub fn new(value: u64) -> Self {
        Self {
            value: AtomicU64::new(value),
            kernel: Mutex::new(Kernel::default()),
            bell: Condvar::new(),
            impatient: false,
        }
    }

    pub fn impatient(value: u64) -> Self {
        Self {
            impatient: true,
            ..Self::new(value)
        }
    }
}

impl Word for ModelWord {
    fn load(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    fn store(&self, value: u64) {
        self.value.store(value, Ordering::Release);
    }

    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.value.compare_exchange(current, new, success, failure)
    }

    fn wait(&self, expected: u32, _timeout: Option<Duration>) -> nix::Result<()> {
        let mut kernel = self.kernel.lock().unwrap();
        // The kernel compares under its lock, which wakers take too.
        if self.value.load(Ordering::SeqCst) as u32 != expected {
            return Ok(());
        }
        if self.impatient {
            drop(kernel);
            loom::thread::yield_now();
            return Err(Errno::ETIMEDOUT);
        }
        let me = kernel.next;
        kernel.next += 1;
        kernel.asleep.push(me);
        while kernel.awake.remove(&me).is_none() {
            kernel = self.bell.wait(kernel).unwrap();
        }
        Ok(())
    }

    fn wake(&self, count: u32) -> usize {
        let mut kernel = self.kernel.lock().unwrap();
        let count = kernel.asleep.len().min(count as usize);
        let woken: Vec<_> = kernel.asleep.drain(..count).collect();
        kernel
            .awake
            .extend(woken.into_iter().map(|sleeper| (sleeper, ())));
        self.bell.notify_all();
        count
    }
}

/// Runs a model with a bound on preemptions, beyond which bugs are very unlikely.
pub fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}
