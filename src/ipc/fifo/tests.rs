use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::*;
use crate::ipc::owned::{self, Got};
use crate::sys::life::Identity;

struct Memory {
    words: [AtomicU64; 12],
    data: UnsafeCell<Vec<u8>>,
}

// SAFETY: the bytes are touched under the locks of the ring only.
#[allow(unsafe_code)]
unsafe impl Sync for Memory {}

impl Memory {
    fn new(capacity: usize) -> Self {
        Self {
            words: Default::default(),
            data: UnsafeCell::new(vec![0; capacity]),
        }
    }
}

#[allow(unsafe_code)]
impl Store for Memory {
    type Word = AtomicU64;
    fn word(&self, at: At) -> &AtomicU64 {
        &self.words[at as usize]
    }
    fn capacity(&self) -> usize {
        // SAFETY: the length never changes.
        unsafe { (*self.data.get()).len() }
    }
    fn write(&self, offset: usize, from: Source<'_>) {
        // SAFETY: the caller holds the lock, no borrow is kept.
        let data = unsafe { &mut *self.data.get() };
        data[offset..offset + from.len()].copy_from_slice(&from.to_vec());
    }
    fn read(&self, offset: usize, mut into: Target<'_>) {
        // SAFETY: as above.
        let data = unsafe { &*self.data.get() };
        into.copy_from(Source::from(&data[offset..offset + into.len()]));
    }
}

fn put(ring: &Memory, tag: u32, message: &[u8]) -> bool {
    let mut appender = Appender::begin(ring);
    let fits = appender.add(tag, Source::from(message));
    if fits {
        appender.commit();
    }
    fits
}

fn take(ring: &Memory) -> Option<(u32, Vec<u8>)> {
    let record = peek(ring).unwrap()?;
    let mut bytes = vec![0; record.len];
    ring.read(record.offset, Target::from(&mut bytes[..]));
    advance(ring, &record);
    Some((record.tag, bytes))
}

/// A small generator of pseudo-random numbers: the tests need variety, not quality.
fn random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

#[test]
fn what_goes_in_comes_out_whole_and_in_order() {
    let ring = Memory::new(1024);
    // Near the end of what the cursors can count.
    let start = Cursor {
        count: u32::MAX - 1000,
        unit: u32::MAX - 1023,
    };
    for at in [At::Head, At::Tail, At::HeadSeen, At::TailSeen] {
        ring.word(at)
            .store(start.pack(), std::sync::atomic::Ordering::Relaxed);
    }
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut inside: VecDeque<(u32, Vec<u8>)> = VecDeque::new();
    for step in 0..50_000u32 {
        if random(&mut state).is_multiple_of(2) {
            let len = random(&mut state) % (longest(1024) + 1);
            let bytes: Vec<u8> = (0..len).map(|i| (step as usize + i) as u8).collect();
            if put(&ring, step, &bytes) {
                inside.push_back((step, bytes));
            } else {
                assert!(inside.len() > 5, "it takes a few of the longest");
            }
        } else {
            assert_eq!(take(&ring), inside.pop_front());
        }
        assert_eq!(len(&ring) as usize, inside.len());
        assert_eq!(is_empty(&ring), inside.is_empty());
    }
    let mut seen = Vec::new();
    each(&ring, |record| seen.push(record.tag)).unwrap();
    let tags: Vec<_> = inside.iter().map(|(tag, _)| *tag).collect();
    assert_eq!(seen, tags);
}

#[test]
fn what_is_not_committed_never_was() {
    let ring = Memory::new(256);
    put(&ring, 1, b"one");
    // A writer that died.
    assert!(Appender::begin(&ring).add(2, Source::from(&b"never"[..])));
    put(&ring, 3, b"three");
    assert_eq!(take(&ring).unwrap().0, 1);
    assert_eq!(peek(&ring).unwrap().unwrap().tag, 3); // a reader that died
    assert_eq!(take(&ring).unwrap(), (3, b"three".to_vec()));
    assert_eq!(take(&ring), None);
}

#[test]
fn garbage_is_an_error_and_never_a_panic() {
    let mut state = 7;
    for _ in 0..20_000 {
        let ring = Memory::new(128);
        for word in 0..16 {
            // few distinct lengths, so that some records look right
            let bytes = (random(&mut state) as u64 & 0xffff_ffff_0000_000f).to_le_bytes();
            ring.write(word * 8, Source::from(&bytes[..]));
        }
        let tail = Cursor {
            count: 5,
            unit: random(&mut state) as u32 % 30,
        };
        ring.word(At::Tail)
            .store(tail.pack(), std::sync::atomic::Ordering::Relaxed);
        while let Ok(Some(record)) = peek(&ring) {
            advance(&ring, &record);
        }
        reset(&ring);
        assert_eq!(take(&ring), None);
        assert!(put(&ring, 1, b"again") && take(&ring).is_some());
    }
}

#[test]
fn tasks_are_counted_until_they_are_done() {
    let ring = Memory::new(256);
    assert_eq!(task_done(&ring, 0), None);
    put(&ring, 0, b"");
    assert_eq!(unfinished(&ring, 1), 2);
    assert_eq!(task_done(&ring, 1), Some(false));
    assert_eq!(task_done(&ring, 1), Some(true));
    assert_eq!(task_done(&ring, 1), None);
}

fn locked<T>(ring: &Memory, lock: At, pid: u32, f: impl FnOnce() -> T) -> T {
    let me = Identity { pid, stamp: 1 };
    while owned::wait(ring.word(lock), me, None, |_| true) != Ok(Got::Free) {}
    let result = f();
    owned::release(ring.word(lock));
    result
}

#[test]
fn many_writers_and_readers() {
    const EACH: u64 = 20_000;
    let ring = Memory::new(1024);
    let sum = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for writer in 1..=3u32 {
            let ring = &ring;
            scope.spawn(move || {
                for number in 0..EACH {
                    let message = number.to_le_bytes();
                    while !locked(ring, At::WLock, writer, || put(ring, writer, &message)) {
                        let look = || has_room(ring).then_some(());
                        bell::wait(ring, At::Room, None, look, || Ok(())).unwrap();
                    }
                    bell::ring(ring, At::Items, 1);
                }
            });
        }
        for reader in 11..=12u32 {
            let (ring, sum) = (&ring, &sum);
            scope.spawn(move || {
                let mut last = [None; 4];
                loop {
                    let Some((tag, bytes)) = locked(ring, At::RLock, reader, || take(ring)) else {
                        let look = || (!is_empty(ring)).then_some(());
                        let limit = Some(Duration::from_secs(1));
                        if bell::wait(ring, At::Items, limit, look, || Ok(()))
                            .unwrap()
                            .is_none()
                        {
                            return;
                        }
                        continue;
                    };
                    bell::ring_all_if(ring, At::Room, || has_room(ring));
                    let number = u64::from_le_bytes(bytes.try_into().unwrap());
                    assert!(
                        last[tag as usize]
                            .replace(number)
                            .is_none_or(|last| last < number)
                    );
                    sum.fetch_add(number + 1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 3 * EACH * (EACH + 1) / 2);
}
