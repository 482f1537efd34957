//! Any memory as a ring: the reader stays inside of it, and gets to its end or says that it is corrupt.
#![no_main]

use std::sync::atomic::{AtomicU64, Ordering};

use _core::ipc::ring::{self, Store};
use libfuzzer_sys::fuzz_target;

struct Memory {
    head: AtomicU64,
    tail: AtomicU64,
    data: Vec<u8>,
}

impl Store for Memory {
    fn head(&self) -> &AtomicU64 {
        &self.head
    }

    fn tail(&self) -> &AtomicU64 {
        &self.tail
    }

    fn capacity(&self) -> usize {
        self.data.len()
    }

    fn write(&self, _: usize, _: &[u8]) {
        unreachable!("the reader writes nothing");
    }

    fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        &self.data[offset..offset + len]
    }
}

fuzz_target!(|input: (u8, u64, u64, bool, &[u8])| {
    let (size, mut head, mut tail, aligned, bytes) = input;
    let capacity = 64_usize << (size % 7);
    let mut data = bytes.to_vec();
    data.resize(capacity, 0);
    if aligned {
        // cursors that could be true, or nearly so
        head &= !7;
        tail = head.wrapping_add(tail % (capacity as u64 / 8 + 2) * 8);
    }
    let memory = Memory {
        head: head.into(),
        tail: tail.into(),
        data,
    };
    for _ in 0..=capacity / 8 {
        let before = memory.head.load(Ordering::Relaxed);
        match ring::pop(&memory, |_, record| record.len()) {
            Ok(Some(len)) => {
                let moved = memory.head.load(Ordering::Relaxed).wrapping_sub(before);
                assert!(moved >= (len + ring::HEADER) as u64 && moved <= capacity as u64);
            }
            Ok(None) | Err(ring::Corrupt) => return,
        }
    }
    panic!("more records than there is room for");
});
