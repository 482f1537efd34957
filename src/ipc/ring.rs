//! The result ring of a worker: records of any size from one writer to one reader.
//!
//! Process-shared: two cursors that only grow (bytes), and a power of two of data bytes. A record
//! is an 8-byte header `len | tag << 32` and its bytes, padded to 8, never split: where one does
//! not fit before the end of the data, a `PAD` header sends the reader back to the start.
//!
//! ```text
//!  cursor  moved by    when
//!  ------  ----------  ---------------------------------------------------------
//!  tail    the writer  a record is complete (release): half a record is never seen
//!  head    the reader  a record has been copied out (release): its bytes are free
//! ```
//!
//! The reader trusts nothing that it reads: a header that does not fit the cursors is
//! [`Corrupt`], and the worker is treated as dead.

use super::atomic::{AtomicU64, Ordering};

pub const HEADER: usize = 8;
const PAD: u32 = u32::MAX;

/// The writer has broken the format (its memory was overwritten).
#[derive(Debug, PartialEq, Eq)]
pub struct Corrupt;

/// Where the cursors and the bytes are.
pub trait Store {
    fn head(&self) -> &AtomicU64;
    fn tail(&self) -> &AtomicU64;
    /// How many data bytes: a power of two.
    fn capacity(&self) -> usize;
    fn write(&self, offset: usize, bytes: &[u8]);
    fn bytes(&self, offset: usize, len: usize) -> &[u8];
}

const fn padded(len: usize) -> usize {
    HEADER + len.next_multiple_of(8)
}

/// The longest record that always fits into an empty ring.
pub const fn longest(capacity: usize) -> usize {
    capacity / 2 - HEADER
}

fn header(len: u32, tag: u32) -> [u8; HEADER] {
    (u64::from(tag) << 32 | u64::from(len)).to_le_bytes()
}

/// Writer: appends one record made of `parts`; false when there is no room now.
pub fn push<S: Store>(store: &S, tag: u32, parts: &[&[u8]]) -> bool {
    let len: usize = parts.iter().map(|p| p.len()).sum();
    let capacity = store.capacity();
    assert!(len <= longest(capacity) && tag != PAD);
    let mut tail = store.tail().load(Ordering::Relaxed);
    // Acquire: the reader is done with the bytes that we are about to reuse.
    let head = store.head().load(Ordering::Acquire);
    let free = capacity - (tail - head) as usize;
    let mut offset = tail as usize & (capacity - 1);
    let to_end = capacity - offset;
    if padded(len) > to_end {
        if to_end + padded(len) > free {
            return false;
        }
        store.write(offset, &header(0, PAD));
        tail += to_end as u64;
        offset = 0;
    } else if padded(len) > free {
        return false;
    }
    store.write(offset, &header(len as u32, tag));
    let mut at = offset + HEADER;
    for part in parts {
        store.write(at, part);
        at += part.len();
    }
    store
        .tail()
        .store(tail + padded(len) as u64, Ordering::Release);
    true
}

/// Reader: gives the next record to `take`, then frees it; `None` when there is none.
pub fn pop<S: Store, T>(
    store: &S,
    take: impl FnOnce(u32, &[u8]) -> T,
) -> Result<Option<T>, Corrupt> {
    let capacity = store.capacity();
    let mut head = store.head().load(Ordering::Relaxed);
    let tail = store.tail().load(Ordering::Acquire);
    loop {
        let filled = tail.wrapping_sub(head);
        if filled == 0 {
            return Ok(None);
        }
        if filled > capacity as u64 || !filled.is_multiple_of(8) || !head.is_multiple_of(8) {
            return Err(Corrupt);
        }
        let offset = head as usize & (capacity - 1);
        let to_end = capacity - offset;
        let raw = store
            .bytes(offset, HEADER)
            .try_into()
            .map_err(|_| Corrupt)?;
        let (len, tag) = {
            let both = u64::from_le_bytes(raw);
            (both as u32 as usize, (both >> 32) as u32)
        };
        if tag == PAD {
            if to_end as u64 > filled {
                return Err(Corrupt);
            }
            head = head.wrapping_add(to_end as u64);
            continue;
        }
        if padded(len) > to_end || padded(len) as u64 > filled {
            return Err(Corrupt);
        }
        let taken = take(tag, store.bytes(offset + HEADER, len));
        store
            .head()
            .store(head.wrapping_add(padded(len) as u64), Ordering::Release);
        return Ok(Some(taken));
    }
}

/// Reader: is there a record?
pub fn is_empty<S: Store>(store: &S) -> bool {
    store.head().load(Ordering::Relaxed) == store.tail().load(Ordering::SeqCst)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::UnsafeCell;
    use std::collections::VecDeque;

    use super::*;

    struct Memory {
        head: AtomicU64,
        tail: AtomicU64,
        data: UnsafeCell<Vec<u8>>,
    }

    impl Memory {
        fn new(capacity: usize) -> Self {
            Self {
                head: AtomicU64::new(0),
                tail: AtomicU64::new(0),
                data: UnsafeCell::new(vec![0; capacity]),
            }
        }
    }

    #[allow(unsafe_code)]
    impl Store for Memory {
        fn head(&self) -> &AtomicU64 {
            &self.head
        }
        fn tail(&self) -> &AtomicU64 {
            &self.tail
        }
        fn capacity(&self) -> usize {
            // SAFETY: one thread, no borrow kept.
            unsafe { (*self.data.get()).len() }
        }
        fn write(&self, offset: usize, bytes: &[u8]) {
            // SAFETY: one thread, no borrow kept.
            let data = unsafe { &mut *self.data.get() };
            data[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        fn bytes(&self, offset: usize, len: usize) -> &[u8] {
            // SAFETY: one thread; the tests copy before they write again.
            let data = unsafe { &*self.data.get() };
            &data[offset..offset + len]
        }
    }

    /// A small generator of pseudo-random numbers: the tests need variety, not quality.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn what_goes_in_comes_out_whole_and_in_order() {
        let ring = Memory::new(256);
        let mut state = 0x9e37_79b9_7f4a_7c15;
        let mut inside: VecDeque<(u32, Vec<u8>)> = VecDeque::new();
        for step in 0..20_000u32 {
            if random(&mut state).is_multiple_of(2) {
                let len = random(&mut state) as usize % (longest(256) + 1);
                let bytes: Vec<u8> = (0..len).map(|i| (step as usize + i) as u8).collect();
                let (a, b) = bytes.split_at(len / 2);
                if push(&ring, step, &[a, b]) {
                    inside.push_back((step, bytes));
                } else {
                    assert!(!inside.is_empty(), "an empty ring takes the longest record");
                }
            } else {
                let got = pop(&ring, |tag, bytes| (tag, bytes.to_vec())).unwrap();
                assert_eq!(got, inside.pop_front());
                assert_eq!(is_empty(&ring), inside.is_empty());
            }
        }
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        let mut state = 7;
        for _ in 0..20_000 {
            let ring = Memory::new(128);
            for word in 0..16 {
                // few distinct lengths, so that some records look right
                let bytes = (random(&mut state) & 0xffff_ffff_0000_003f).to_le_bytes();
                ring.write(word * 8, &bytes);
            }
            ring.tail.store(random(&mut state) % 200, Ordering::Relaxed);
            while let Ok(Some(())) = pop(&ring, |_, _| ()) {}
        }
    }

    #[test]
    fn cursors_out_of_numbers_are_no_panic() {
        for pad in [0, PAD] {
            let ring = Memory::new(64);
            ring.head.store(u64::MAX - 7, Ordering::Relaxed);
            ring.tail.store(8, Ordering::Relaxed);
            ring.write(64 - HEADER, &header(0, pad));
            assert_eq!(
                pop(&ring, |tag, bytes| (tag, bytes.len())),
                Ok(Some((0, 0)))
            );
        }
    }
}

#[cfg(all(test, loom))]
#[allow(unsafe_code)] // loom's cells check every access to the data
mod models {
    use loom::cell::Cell;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// 32 bytes; the payload bytes are ignored but for the first word of each slot of 16.
    struct Memory {
        head: AtomicU64,
        tail: AtomicU64,
        words: [Cell<[u8; 8]>; 4],
    }

    // SAFETY: loom checks that no two threads touch a cell at once.
    unsafe impl Sync for Memory {}
    // SAFETY: as above.
    unsafe impl Send for Memory {}

    impl Store for Memory {
        fn head(&self) -> &AtomicU64 {
            &self.head
        }
        fn tail(&self) -> &AtomicU64 {
            &self.tail
        }
        fn capacity(&self) -> usize {
            32
        }
        fn write(&self, offset: usize, bytes: &[u8]) {
            self.words[offset / 8].set(bytes.try_into().unwrap());
        }
        fn bytes(&self, offset: usize, _len: usize) -> &[u8] {
            Box::leak(Box::new(self.words[offset / 8].get()))
        }
    }

    #[test]
    fn loom_records_are_seen_whole() {
        loom::model(|| {
            let ring = Arc::new(Memory {
                head: AtomicU64::new(0),
                tail: AtomicU64::new(0),
                words: std::array::from_fn(|_| Cell::new([0; 8])),
            });
            let writer = {
                let ring = ring.clone();
                thread::spawn(move || {
                    (1..=3u32)
                        .take_while(|n| push(&*ring, *n, &[&[*n as u8; 8]]))
                        .count() as u32
                })
            };
            let mut got = 0;
            let mut look = || {
                let taken = pop(&*ring, |tag, bytes| {
                    assert_eq!(bytes, [tag as u8; 8]);
                    assert_eq!(tag, got + 1);
                })
                .unwrap();
                got += taken.is_some() as u32;
                taken.is_some()
            };
            look();
            let sent = writer.join().unwrap();
            while look() {}
            assert_eq!(got, sent);
        });
    }
}
