//! What loom can say of the ring: its cells check every access to the data.
#![cfg(loom)]
#![allow(unsafe_code)]

use loom::cell::Cell;
use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::ipc::owned::{self, Got};
use crate::ipc::word_model::{ModelWord, check};
use crate::sys::life::Identity;

struct Memory {
    words: Vec<ModelWord>,
    data: Vec<Cell<[u8; 8]>>,
}

// SAFETY: loom checks that no two threads touch a cell at once.
unsafe impl Sync for Memory {}
// SAFETY: as above.
unsafe impl Send for Memory {}

impl Memory {
    fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            words: (0..=At::Chunks as usize)
                .map(|_| ModelWord::new(0))
                .collect(),
            data: (0..capacity / 8).map(|_| Cell::new([0; 8])).collect(),
        })
    }
}

impl Store for Memory {
    type Word = ModelWord;
    fn word(&self, at: At) -> &ModelWord {
        &self.words[at as usize]
    }
    fn capacity(&self) -> usize {
        self.data.len() * 8
    }
    fn write(&self, offset: usize, from: Source<'_>) {
        let bytes = from.to_vec().try_into().expect("one unit at a time");
        self.data[offset / 8].set(bytes);
    }
    fn read(&self, offset: usize, mut into: Target<'_>) {
        into.copy_from(Source::from(&self.data[offset / 8].get()[..]));
    }
}

fn someone(pid: u32) -> Identity {
    Identity { pid, stamp: 1 }
}

fn lock(ring: &Memory, at: At, pid: u32) {
    let got = owned::wait(ring.word(at), someone(pid), None, |_| true);
    assert_eq!(got, Ok(Got::Free));
}

/// At which step of its work a process dies.
#[derive(Clone, Copy, PartialEq)]
enum Dies {
    Never,
    BeforeTheCursor,
    BeforeTheRelease,
    BeforeTheBell,
}

fn put(ring: &Memory, pid: u32, dies: Dies) {
    lock(ring, At::WLock, pid);
    let mut appender = Appender::begin(ring);
    assert!(appender.add(pid, Source::from(&[pid as u8; 8][..])));
    if dies == Dies::BeforeTheCursor {
        return;
    }
    appender.commit();
    if dies == Dies::BeforeTheRelease {
        return;
    }
    owned::release(ring.word(At::WLock));
    if dies != Dies::BeforeTheBell {
        bell::ring(ring, At::Items, 1);
    }
}

fn take(ring: &Memory, pid: u32, dies: Dies) -> Option<u32> {
    lock(ring, At::RLock, pid);
    let record = peek(ring).unwrap();
    if let Some(record) = record {
        let mut bytes = [0; 8];
        ring.read(record.offset, Target::from(&mut bytes[..]));
        assert_eq!(bytes, [record.tag as u8; 8]);
        if dies == Dies::BeforeTheCursor {
            return None;
        }
        advance(ring, &record);
        if dies == Dies::BeforeTheRelease {
            return None;
        }
    }
    owned::release(ring.word(At::RLock));
    record.map(|record| record.tag)
}

fn get(ring: &Memory, pid: u32) -> u32 {
    loop {
        if let Some(tag) = take(ring, pid, Dies::Never) {
            return tag;
        }
        let look = || (!is_empty(ring)).then_some(());
        bell::wait(ring, At::Items, None, look, || Ok(())).unwrap();
    }
}

#[test]
fn loom_every_message_is_taken_once_and_whole() {
    check(2, || {
        let ring = Memory::new(128);
        let writers: Vec<_> = (1..=2)
            .map(|pid| {
                let ring = ring.clone();
                thread::spawn(move || put(&ring, pid, Dies::Never))
            })
            .collect();
        let mut got = [get(&ring, 9), get(&ring, 9)];
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        assert!(is_empty(&*ring));
    });
}

#[test]
fn loom_two_readers_that_wait_are_both_woken() {
    check(2, || {
        let ring = Memory::new(128);
        let reader = {
            let ring = ring.clone();
            thread::spawn(move || get(&ring, 8))
        };
        let writer = {
            let ring = ring.clone();
            thread::spawn(move || (1..=2).for_each(|pid| put(&ring, pid, Dies::Never)))
        };
        let mine = get(&ring, 9);
        writer.join().unwrap();
        assert_eq!(mine + reader.join().unwrap(), 3);
    });
}

/// Whatever the step at which a writer dies, its message is there whole or not at all, and the next
/// one goes on.
#[test]
fn loom_a_writer_that_dies_costs_at_most_its_message() {
    for dies in [
        Dies::BeforeTheCursor,
        Dies::BeforeTheRelease,
        Dies::BeforeTheBell,
    ] {
        check(3, move || {
            let ring = Memory::new(128);
            let writer = {
                let ring = ring.clone();
                thread::spawn(move || put(&ring, 1, dies))
            };
            let early = take(&ring, 9, Dies::Never);
            writer.join().unwrap(); // it is seen to be dead
            if dies != Dies::BeforeTheBell {
                let heir = owned::take_from_dead(ring.word(At::WLock), someone(2), |_| false);
                assert_eq!(heir, Some(Got::FromTheDead(someone(1))));
                owned::release(ring.word(At::WLock));
            }
            put(&ring, 3, Dies::Never);
            let first = early.unwrap_or_else(|| get(&ring, 9));
            if dies == Dies::BeforeTheCursor {
                assert_eq!(first, 3);
            } else {
                assert_eq!((first, get(&ring, 9)), (1, 3));
            }
            assert!(is_empty(&*ring));
        });
    }
}

/// The same for a reader: what it had not taken, the next one takes.
#[test]
fn loom_a_reader_that_dies_costs_at_most_its_message() {
    for dies in [Dies::BeforeTheCursor, Dies::BeforeTheRelease] {
        check(3, move || {
            let ring = Memory::new(128);
            put(&ring, 1, Dies::Never);
            let reader = {
                let ring = ring.clone();
                thread::spawn(move || take(&ring, 8, dies))
            };
            put(&ring, 2, Dies::Never);
            reader.join().unwrap();
            owned::take_from_dead(ring.word(At::RLock), someone(9), |_| false).unwrap();
            owned::release(ring.word(At::RLock));
            if dies == Dies::BeforeTheCursor {
                assert_eq!(get(&ring, 9), 1);
            }
            assert_eq!(get(&ring, 9), 2);
            assert!(is_empty(&*ring));
        });
    }
}

#[test]
fn loom_who_waits_for_all_tasks_sees_the_last_one_done() {
    check(2, || {
        let ring = Memory::new(128);
        put(&ring, 1, Dies::Never);
        let worker = {
            let ring = ring.clone();
            thread::spawn(move || {
                if task_done(&*ring, 0).unwrap() {
                    bell::all_done(&*ring);
                }
            })
        };
        let times = bell::times_done(&*ring);
        let look =
            || (unfinished(&*ring, 0) == 0 || bell::times_done(&*ring) != times).then_some(());
        bell::wait(&*ring, At::Joins, None, look, || Ok(())).unwrap();
        worker.join().unwrap();
    });
}
