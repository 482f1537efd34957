//! Both sides in one process.

use std::sync::Arc;

use super::*;
use crate::sys::segment::{PAGE, Segment};

const ENTRIES: usize = 64;
const HEAD: usize = 4 * PAGE;
const TABLE: usize = 128;

fn bounds(lent: usize) -> Bounds {
    Bounds {
        lent,
        idle: 8 << 20,
    }
}

fn pair(lent: usize) -> (Arc<Segment>, Pool, Receiver) {
    assert!(TABLE + table_size(ENTRIES) <= HEAD);
    let segment = Segment::create(c"test", HEAD).unwrap();
    let pool = Pool::with_bounds(segment.clone(), TABLE, ENTRIES, HEAD, bounds(lent));
    let receiver = Receiver::new(segment.clone(), TABLE, ENTRIES, 3);
    (segment, pool, receiver)
}

fn send(pool: &Pool, bytes: &[u8]) -> u32 {
    let mut extent = pool.allocate(bytes.len()).unwrap().unwrap();
    extent.write(0, bytes).unwrap();
    extent.into_index()
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + seed) as u8).collect()
}

#[test]
fn messages_of_every_size_arrive_in_all_three_ways() {
    let (_segment, pool, receiver) = pair(usize::MAX);
    for round in 0..4 {
        for len in [1, 512, 4096, 49152, 50000, LARGE, LARGE + 1, 3 << 20] {
            let sent = pattern(len, round);
            let shared = receiver.take(send(&pool, &sent)).unwrap().shared().unwrap();
            assert_eq!(shared.bytes(), sent);
            let copied = receiver.take(send(&pool, &sent)).unwrap().copy_out();
            assert_eq!(copied.unwrap(), sent);
            let taken = receiver.take(send(&pool, &sent)).unwrap();
            match taken.private() {
                Ok(private) => assert_eq!(private.bytes(), sent),
                Err(errno) => assert!(errno == nix::errno::Errno::EINVAL && len <= 49152),
            }
        }
    }
    pool.collect();
    assert_eq!(pool.lent(), 0);
}

#[test]
fn a_sender_waits_for_a_receiver_as_long_as_that_gives_extents_back() {
    let (_segment, pool, receiver) = pair(usize::MAX);
    let len = 2 * LARGE;
    let sent = [send(&pool, &pattern(len, 0)), send(&pool, &pattern(len, 1))];
    assert!(!pool.is_returning(len), "nothing has come back");
    drop(receiver.take(sent[0]));
    assert!(!pool.is_returning(len), "there is an idle one");
    send(&pool, &pattern(len, 2));
    assert!(pool.is_returning(len));
    pool.wait_for_return(len);
    assert!(!pool.is_returning(len), "waited in vain");
    drop(receiver.take(sent[1]));
    send(&pool, &pattern(len, 3));
    assert!(pool.is_returning(len), "another has come back");
}

#[test]
fn an_extent_is_used_again_when_it_is_back_and_not_before() {
    let (_segment, pool, receiver) = pair(usize::MAX);
    let taken = receiver.take(send(&pool, &[1; LARGE])).unwrap();
    let view = taken.private().unwrap();
    let other = receiver.take(send(&pool, &[2; LARGE])).unwrap();
    assert_ne!(view.taken_offset(), other.offset());
    let first = view.taken_offset();
    assert_eq!(view.bytes(), [1; LARGE]);
    drop(view);
    let mut extent = pool.allocate(LARGE).unwrap().unwrap();
    assert!(!extent.is_mapped());
    extent.write(0, &[3; LARGE][..]).unwrap();
    assert!(extent.is_mapped());
    let third = receiver.take(extent.into_index()).unwrap();
    assert_eq!(third.offset(), first);
    drop(third);
    assert!(pool.allocate(LARGE).unwrap().unwrap().is_mapped());
}

#[test]
fn a_reference_is_good_once() {
    let (_segment, pool, receiver) = pair(usize::MAX);
    let index = send(&pool, b"text");
    drop(receiver.take(index).unwrap());
    assert_eq!(receiver.take(index).unwrap_err(), Refused::Corrupt);
    assert_eq!(receiver.take(u32::MAX).unwrap_err(), Refused::Corrupt);
    assert!(!pool.discard(index));
    let index = send(&pool, b"text");
    assert!(pool.discard(index));
    assert!(!pool.discard(index));
    assert_eq!(receiver.take(index).unwrap_err(), Refused::Corrupt);
    pool.collect();
    assert_eq!(pool.lent(), 0);
}

#[test]
fn places_that_make_no_sense_are_refused() {
    let (segment, pool, receiver) = pair(usize::MAX);
    let far = 1u64 << 40;
    for (at, value) in [
        (0, 0),
        (0, far),
        (0, u64::MAX),
        (0, HEAD as u64 + 1),
        (8, 0),
        (8, u64::MAX),
        (16, u64::MAX),
        (16, far),
    ] {
        let index = send(&pool, &[7; LARGE]);
        let place = Table::new(TABLE, ENTRIES).place(index as u16) + at;
        segment
            .head()
            .u64(place)
            .store(value, std::sync::atomic::Ordering::Relaxed);
        let refused = receiver.take(index).unwrap_err();
        assert_eq!(refused, Refused::Corrupt, "{value:#x} at {at}");
    }
    pool.collect();
    assert_eq!(pool.lent(), 0);
}

#[test]
fn what_a_dead_holder_had_comes_back_and_nothing_else() {
    let (segment, pool, receiver) = pair(usize::MAX);
    let other = Receiver::new(segment, TABLE, ENTRIES, 4);
    let dead = receiver.take(send(&pool, &[1; LARGE])).unwrap();
    let alive = other.take(send(&pool, &[2; LARGE])).unwrap();
    let on_its_way = send(&pool, &[3; LARGE]);
    assert_eq!(pool.holders(), [3, 4]);
    let before = pool.lent();
    std::mem::forget(dead);
    pool.reclaim(3);
    pool.reclaim(3);
    assert_eq!(pool.holders(), [4]);
    assert_eq!(pool.lent(), before / 3 * 2);
    assert_eq!(alive.copy_out().unwrap(), [2; LARGE]);
    assert!(other.take(on_its_way).is_ok());
}

#[test]
fn the_bounds_hold() {
    let (_segment, pool, receiver) = pair(1 << 20);
    // One message may be as large as it likes.
    let large = receiver.take(send(&pool, &vec![1; 4 << 20])).unwrap();
    assert!(pool.allocate(1).unwrap().is_none());
    drop(large);
    let indices: Vec<_> = (0..ENTRIES).map(|_| send(&pool, b"small")).collect();
    assert!(pool.allocate(1).unwrap().is_none());
    assert!(pool.discard(indices[5]));
    let extent = pool.allocate(1).unwrap().unwrap();
    assert!(pool.allocate(1).unwrap().is_none());
    drop(extent);
    assert!(pool.allocate(1).unwrap().is_some());
}

#[test]
fn memory_above_the_bound_goes_back_to_the_system() {
    let (segment, pool, receiver) = pair(usize::MAX);
    let sent: Vec<_> = (0..16).map(|_| send(&pool, &vec![1; 1 << 20])).collect();
    let resident = || segment.resident_bytes().unwrap();
    assert!(resident() >= 16 << 20);
    for index in sent {
        drop(receiver.take(index).unwrap());
    }
    pool.collect();
    assert!(resident() <= (8 << 20) + HEAD + (1 << 16), "{}", resident());
    pool.trim(0);
    assert!(resident() <= HEAD, "{}", resident());
    assert_eq!(pool.lent(), 0);
}

#[test]
fn many_threads_may_send() {
    let (_segment, pool, receiver) = pair(usize::MAX);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (pool, receiver) = (&pool, &receiver);
            scope.spawn(move || {
                for len in (0..400).map(|i| 1 + (i * 997 + seed * 31) % 200_000) {
                    let sent = pattern(len, seed);
                    let taken = receiver.take(send(pool, &sent)).unwrap();
                    assert_eq!(taken.copy_out().unwrap(), sent);
                }
            });
        }
    });
    pool.collect();
    assert_eq!(pool.lent(), 0);
}
