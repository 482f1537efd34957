//! What the words and rings cost without Python: `cargo bench --no-default-features --bench ipc`.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use _core::ipc::arena::Block;
use _core::ipc::channel::Channel;
use _core::ipc::fifo::{self, At, Store, bell};
use _core::ipc::{event, owned, semaphore};
use _core::sys::io::{Source, Target};
use _core::sys::life;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn locks(criterion: &mut Criterion) {
    let (word, me) = (AtomicU64::new(1), life::me());
    criterion.bench_function("semaphore, acquire and release", |bench| {
        bench.iter(|| {
            assert!(semaphore::try_acquire(black_box(&word)));
            semaphore::release(&word, 1)
        });
    });
    let word = AtomicU64::new(0);
    criterion.bench_function("mutex that knows its owner, acquire and release", |bench| {
        bench.iter(|| {
            assert!(owned::try_acquire(black_box(&word), me));
            owned::release(&word);
        });
    });
    let word = AtomicU64::new(0);
    criterion.bench_function("event, set and clear", |bench| {
        bench.iter(|| {
            event::set(black_box(&word));
            event::clear(&word);
        });
    });
}

/// A thread that waits for one event and sets another.
fn hand_over(criterion: &mut Criterion) {
    let words: Arc<[AtomicU64; 2]> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let peer = {
        let (words, stop) = (Arc::clone(&words), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let since = event::look(&words[0]);
                if event::wait(&words[0], since, Some(Duration::from_millis(100))) == Ok(true) {
                    event::clear(&words[0]);
                    event::set(&words[1]);
                }
            }
        })
    };
    criterion.bench_function("event, there and back, sleeping", |bench| {
        bench.iter(|| {
            event::set(&words[0]);
            while !event::is_set(&words[1]) {
                let since = event::look(&words[1]);
                let _ = event::wait(&words[1], since, Some(Duration::from_millis(100)));
            }
            event::clear(&words[1]);
        });
    });
    stop.store(true, Ordering::Relaxed);
    peer.join().expect("the peer ended well");
}

fn arena(criterion: &mut Criterion) {
    criterion.bench_function("block of 64 bytes, made and dropped", |bench| {
        bench.iter(|| Block::new(black_box(64)));
    });
    criterion.bench_function("queue, made and dropped", |bench| {
        bench.iter(|| Channel::create(0));
    });
}

fn put(channel: &Channel, message: &[u8]) -> bool {
    assert!(channel.lock_through(At::WLock, None));
    let put = channel.put(0, Source::from(message));
    channel.unlock(At::WLock);
    channel.tell(1);
    put == _core::ipc::channel::Put::Done
}

fn take(channel: &Channel, into: &mut [u8]) -> bool {
    assert!(channel.lock_through(At::RLock, None));
    let record = fifo::peek(&channel.memory).expect("a sound ring");
    if let Some(record) = record {
        let target = Target::from(&mut into[..record.len]);
        channel.memory.read(record.offset, target);
        fifo::advance(&channel.memory, &record);
    }
    channel.unlock(At::RLock);
    channel.taken(1);
    record.is_some()
}

fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    for size in [16, 1024, 32 << 10] {
        let channel = Channel::create(0).expect("memory");
        let (message, mut into) = (vec![1; size], vec![0; size]);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size} bytes, put and taken by one"), |bench| {
            bench.iter(|| assert!(put(&channel, &message) && take(&channel, &mut into)));
        });
        group.bench_function(format!("{size} bytes, from one to another"), |bench| {
            bench.iter_custom(|count| stream(&message, count));
        });
    }
}

/// How long it takes to send so many messages from one thread to another.
fn stream(message: &[u8], count: u64) -> Duration {
    let channel = Channel::create(0).expect("memory");
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..count {
                while !put(&channel, message) {
                    let look = || fifo::has_room(&channel.memory).then_some(());
                    let _ = bell::wait(&channel.memory, At::Room, None, look, || Ok(()));
                }
            }
        });
        let mut into = vec![0; message.len()];
        for _ in 0..count {
            while !take(&channel, &mut into) {
                let look = || (!fifo::is_empty(&channel.memory)).then_some(());
                let _ = bell::wait(&channel.memory, At::Items, None, look, || Ok(()));
            }
        }
    });
    start.elapsed()
}

criterion_group!(benches, locks, hand_over, arena, ring);
criterion_main!(benches);
