//! What a process has put into a queue and the ring has no room for yet.
//!
//! ```text
//!  put ──room and nothing waits here──────────────────────────────► ring
//!   └───otherwise──► records, in order ──► thread, as room comes ──►
//! ```
//! The thread exists while there is something to move, and a moment longer. It takes no lock of
//! Python's. It ends early when no process is left that could take anything.
//!
//! *Process-local*. The mutex may be held by the thread at any time, so also when the process
//! forks: a forked child never looks at what it inherits of this, and begins with an empty one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::channel::{CAPACITY, Channel};
use super::fifo::overflow::Place;
use super::fifo::{self, Appender, At, bell};
use super::word::Word;
use crate::sys::futex::EVERYONE;
use crate::sys::io::Source;
use crate::sys::{fork, life, thread};

/// How long the thread stays when there is nothing to do.
const LINGER: Duration = Duration::from_millis(100);
/// Bytes of records that are kept together.
const SHEAF: usize = 64 << 10;
const HEADER: usize = 8;

#[derive(Debug, Default)]
struct Waiting {
    /// records one after the other, each with its tag and length before it
    sheaves: VecDeque<Vec<u8>>,
    /// how much of the first sheaf has been moved
    moved: usize,
    has_thread: bool,
}

/// The overflow of one process.
#[derive(Debug)]
pub struct Outbox {
    made_in: u32,
    waiting: Mutex<Waiting>,
    more: Condvar,
    /// whether anything waits; it does until the ring has all of it
    busy: AtomicBool,
    /// how often the thread has moved everything (to sleep on)
    emptied: AtomicU64,
    place: Mutex<Option<Place>>,
}

impl Outbox {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            made_in: fork::generation(),
            waiting: Mutex::default(),
            more: Condvar::new(),
            busy: AtomicBool::new(false),
            emptied: AtomicU64::new(0),
            place: Mutex::new(None),
        })
    }

    /// Whether this process made it. If not, it must not be touched.
    #[inline]
    pub fn is_ours(&self) -> bool {
        self.made_in == fork::generation()
    }

    /// Whether what is put has to wait its turn here.
    #[inline]
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the holder of `W_LOCK`: counts a message that is about to be pushed.
    pub fn count(&self, channel: &Channel) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let place = place.get_or_insert_with(|| channel.overflow().enter(life::me(), life::runs));
        channel.overflow().add(*place, 1);
    }

    /// As [`count`](Self::count) without the lock; false if it is needed, the first time.
    pub fn count_again(&self, channel: &Channel) -> bool {
        let place = *self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = place {
            channel.overflow().add(place, 1);
        }
        place.is_some()
    }

    /// Takes a message back that was counted and will not be pushed.
    pub fn uncount(&self, channel: &Channel, messages: u32) {
        let place = *self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = place {
            channel.overflow().sub(place, messages);
        }
    }

    /// Has a thread move what is pushed from now on. `EAGAIN` if there can be none.
    pub fn prepare(self: &Arc<Self>, channel: &Arc<Channel>) -> nix::Result<()> {
        let mut waiting = self.waiting();
        if !waiting.has_thread {
            let (outbox, channel) = (Arc::clone(self), Arc::clone(channel));
            thread::start("billiard-queue", move || outbox.run(&channel))?;
            waiting.has_thread = true;
        }
        Ok(())
    }

    /// Adds a message that has been [counted](Self::count), after [`prepare`](Self::prepare).
    pub fn push(self: &Arc<Self>, channel: &Arc<Channel>, tag: u32, message: Source<'_>) {
        let mut waiting = self.waiting();
        let room = HEADER + message.len();
        if waiting
            .sheaves
            .back()
            .is_none_or(|last| last.len() + room > last.capacity())
        {
            let sheaf = Vec::with_capacity(SHEAF.max(room));
            waiting.sheaves.push_back(sheaf);
        }
        if let Some(sheaf) = waiting.sheaves.back_mut() {
            sheaf.extend(tag.to_le_bytes());
            sheaf.extend((message.len() as u32).to_le_bytes());
            message.append_to(sheaf);
        }
        self.busy.store(true, Ordering::Release);
        let asleep = !waiting.has_thread;
        drop(waiting);
        self.more.notify_one();
        if asleep {
            let _ = self.prepare(channel); // it has ended since; the next put tries again
        }
    }

    /// Waits until everything has been moved or given up; `false` when the time was over.
    pub fn wait_until_empty(&self, timeout: Option<Duration>) -> nix::Result<bool> {
        let times = self.emptied.load(Ordering::Acquire);
        if !self.is_busy() {
            return Ok(true);
        }
        let slice = Duration::from_millis(200);
        let slice = timeout.map_or(slice, |left| left.min(slice));
        match Word::wait(&self.emptied, times as u32, Some(slice)) {
            // Over, or a look now and then: at signals too, see `bell`.
            Ok(()) => Ok(!self.is_busy()),
            Err(Errno::ETIMEDOUT) if timeout == Some(slice) => Ok(!self.is_busy()),
            Err(Errno::ETIMEDOUT) => Err(Errno::EINTR),
            Err(errno) => Err(errno),
        }
    }

    fn run(&self, channel: &Channel) {
        loop {
            if !self.wait_for_more() {
                return;
            }
            let moved_all = self.move_some(channel);
            if !moved_all && !self.wait_for_room(channel) {
                self.give_up(channel);
            }
            if !self.is_busy() {
                channel.has_moved_all();
            }
        }
    }

    /// False when the thread may end: nothing has come for a while.
    fn wait_for_more(&self) -> bool {
        let waiting = self.waiting();
        let nothing = |waiting: &mut Waiting| waiting.sheaves.is_empty();
        let (mut waiting, _) = self
            .more
            .wait_timeout_while(waiting, LINGER, nothing)
            .unwrap_or_else(PoisonError::into_inner);
        waiting.has_thread = !waiting.sheaves.is_empty();
        waiting.has_thread
    }

    /// Moves what the ring has room for; whether that was all of the first sheaf.
    fn move_some(&self, channel: &Channel) -> bool {
        let (sheaf, start) = {
            let mut waiting = self.waiting();
            let Some(first) = waiting.sheaves.front_mut() else {
                return true;
            };
            // An empty one stays in its place, so that nothing overtakes and nobody appends to it.
            (std::mem::take(first), waiting.moved)
        };
        let (mut at, mut messages) = (start, 0);
        if channel.lock_through(At::WLock, None) {
            let mut appender = Appender::begin(&channel.memory);
            while let Some((tag, message)) = record(&sheaf, at) {
                if !appender.add(tag, Source::from(message)) {
                    break;
                }
                at += HEADER + message.len();
                messages += 1;
            }
            if messages > 0 {
                channel.commit(appender);
                self.uncount(channel, messages);
            }
            channel.unlock(At::WLock);
            channel.tell(messages);
        }
        let all = at >= sheaf.len();
        let mut waiting = self.waiting();
        if all {
            waiting.sheaves.pop_front();
            waiting.moved = 0;
        } else if let Some(first) = waiting.sheaves.front_mut() {
            *first = sheaf;
            waiting.moved = at;
        }
        self.note_if_empty(waiting);
        all
    }

    fn note_if_empty(&self, waiting: MutexGuard<'_, Waiting>) {
        if waiting.sheaves.is_empty() {
            self.busy.store(false, Ordering::Release);
            self.emptied.fetch_add(1, Ordering::Release);
            Word::wake(&self.emptied, EVERYONE);
        }
    }

    /// False if nobody will ever make room.
    fn wait_for_room(&self, channel: &Channel) -> bool {
        loop {
            let memory = &channel.memory;
            let look = || fifo::has_room(memory).then_some(());
            let limit = Some(Duration::from_millis(200));
            match bell::wait(memory, At::Room, limit, look, || Ok(())) {
                Ok(Some(())) => return true,
                _ if channel.is_abandoned() => return false,
                _ => {}
            }
        }
    }

    fn give_up(&self, channel: &Channel) {
        let mut waiting = self.waiting();
        let mut lost = 0;
        for (index, sheaf) in waiting.sheaves.iter().enumerate() {
            let mut at = if index == 0 { waiting.moved } else { 0 };
            while let Some((_, message)) = record(sheaf, at) {
                at += HEADER + message.len();
                lost += 1;
            }
        }
        waiting.sheaves.clear();
        waiting.moved = 0;
        self.uncount(channel, lost);
        self.note_if_empty(waiting);
    }
}

fn record(sheaf: &[u8], at: usize) -> Option<(u32, &[u8])> {
    let number = |at: usize| -> Option<u32> {
        let bytes = sheaf.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    let (tag, len) = (number(at)?, number(at + 4)? as usize);
    Some((tag, sheaf.get(at + HEADER..at + HEADER + len)?))
}

const _: () = assert!(
    SHEAF < CAPACITY / 2,
    "room for a sheaf is what is waited for"
);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ipc::fifo::Store;
    use crate::sys::io::Target;

    fn take(channel: &Channel) -> Option<Vec<u8>> {
        assert!(channel.lock_through(At::RLock, None));
        let record = fifo::peek(&channel.memory).unwrap();
        let message = record.map(|record| {
            let mut bytes = vec![0; record.len];
            channel
                .memory
                .read(record.offset, Target::from(&mut bytes[..]));
            fifo::advance(&channel.memory, &record);
            bytes
        });
        channel.unlock(At::RLock);
        channel.taken(1);
        message
    }

    fn push(outbox: &Arc<Outbox>, channel: &Arc<Channel>, message: &[u8]) {
        outbox.prepare(channel).unwrap();
        assert!(channel.lock_through(At::WLock, None));
        outbox.count(channel);
        channel.unlock(At::WLock);
        outbox.push(channel, 0, Source::from(message));
    }

    #[test]
    fn what_the_ring_has_no_room_for_follows_in_order() {
        let channel = Arc::new(Channel::create(0).unwrap());
        let outbox = Outbox::new();
        let message = |number: u32| vec![number as u8; 1 + number as usize * 7 % 20_000];
        for number in 0..1000 {
            push(&outbox, &channel, &message(number));
            assert!(channel.count() >= number);
        }
        assert_eq!(channel.count(), 1000);
        assert!(outbox.is_busy());
        for number in 0..1000 {
            while fifo::is_empty(&channel.memory) {
                std::thread::yield_now();
            }
            assert_eq!(take(&channel).unwrap(), message(number));
        }
        while !outbox.wait_until_empty(None).unwrap() {}
        assert_eq!((channel.count(), channel.overflow().total()), (0, 0));
    }

    #[test]
    fn what_nobody_will_take_is_given_up() {
        let channel = Arc::new(Channel::create(0).unwrap());
        let outbox = Outbox::new();
        for _ in 0..100 {
            push(&outbox, &channel, &[0; 10_000]);
        }
        assert!(!channel.is_abandoned());
        channel.close_reader();
        assert!(channel.is_abandoned());
        while !outbox.wait_until_empty(None).unwrap() {}
        assert_eq!(channel.overflow().total(), 0);
    }
}
