//! Parties in one process.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const NOW: Option<Duration> = Some(Duration::ZERO);

fn words() -> [AtomicU64; WORDS] {
    Default::default()
}

fn arrive(barrier: &Barrier<'_, AtomicU64>, parties: u32, action: bool) -> Arrival {
    barrier.arrive(parties, action, 1).unwrap().unwrap()
}

#[test]
fn the_last_one_lets_all_go() {
    let words = words();
    let barrier = Barrier(&words);
    let first = arrive(&barrier, 2, false);
    assert_eq!(
        (first.index, first.part, barrier.waiting(2)),
        (0, Part::Wait, 1)
    );
    let last = arrive(&barrier, 2, false);
    assert_eq!((last.index, last.part), (1, Part::Go));
    assert_eq!(barrier.wait(first, None, |_| true), Ok(Ok(())));
    assert_eq!(barrier.waiting(2), 0);
}

#[test]
fn who_looks_late_still_learns_how_it_ended() {
    let words = words();
    let barrier = Barrier(&words);
    let released = arrive(&barrier, 2, false);
    arrive(&barrier, 2, false);
    let broken = arrive(&barrier, 2, false);
    barrier.reset();
    for _ in 0..10 {
        arrive(&barrier, 1, false);
    }
    assert_eq!(barrier.wait(released, None, |_| true), Ok(Ok(())));
    assert_eq!(barrier.wait(broken, None, |_| true), Ok(Err(Broken)));
}

#[test]
fn time_over_breaks_it_for_all_until_it_is_reset() {
    let words = words();
    let barrier = Barrier(&words);
    let first = arrive(&barrier, 3, false);
    let second = arrive(&barrier, 3, false);
    assert_eq!(barrier.wait(first, NOW, |_| true), Ok(Err(Broken)));
    assert_eq!(barrier.wait(second, None, |_| true), Ok(Err(Broken)));
    assert_eq!(barrier.arrive(3, false, 1), Err(Broken));
    barrier.reset();
    assert!(!barrier.is_broken());
    assert_eq!(barrier.arrive(3, false, 1).unwrap().unwrap().index, 0);
}

#[test]
fn nobody_arrives_while_the_action_runs() {
    let words = words();
    let barrier = Barrier(&words);
    let acting = arrive(&barrier, 1, true);
    assert_eq!(acting.part, Part::Act);
    assert_eq!(barrier.arrive(1, true, 1), Ok(None));
    assert_eq!(barrier.wait_for_room(NOW, |_| true), Ok(false));
    assert_eq!(barrier.finish(acting, 1, false), Ok(()));
    assert_eq!(barrier.wait_for_room(NOW, |_| true), Ok(true));
    assert_eq!(arrive(&barrier, 1, true).part, Part::Act);
}

#[test]
fn a_failing_action_breaks_it() {
    let words = words();
    let barrier = Barrier(&words);
    let first = arrive(&barrier, 2, true);
    let acting = arrive(&barrier, 2, true);
    assert_eq!(barrier.finish(acting, 2, true), Ok(()));
    assert_eq!(barrier.wait(first, None, |_| true), Ok(Err(Broken)));
}

#[test]
fn who_dies_in_the_action_breaks_it() {
    let words = words();
    let barrier = Barrier(&words);
    let first = arrive(&barrier, 2, true);
    arrive(&barrier, 2, true);
    assert_eq!(barrier.wait(first, None, |_| false), Ok(Err(Broken)));
}

#[test]
fn who_dies_before_it_says_who_it_is_breaks_it() {
    let words = words();
    let barrier = Barrier(&words);
    let first = arrive(&barrier, 2, true);
    arrive(&barrier, 2, true);
    words[RUNNER].store(u64::MAX, Ordering::Relaxed);
    assert_eq!(barrier.wait(first, None, |_| true), Ok(Err(Broken)));
}

#[test]
fn who_withdraws_is_not_counted() {
    let words = words();
    let barrier = Barrier(&words);
    let first = arrive(&barrier, 2, false);
    barrier.withdraw(first);
    assert_eq!(barrier.waiting(2), 0);
    assert_eq!(arrive(&barrier, 2, false).part, Part::Wait);
}

#[test]
fn many_rounds_with_more_threads_than_parties() {
    let words = words();
    // Tickets, not rounds of each: one thread with rounds left would wait for itself.
    let (tickets, actions) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (words, tickets, actions) = (&words, &tickets, &actions);
            scope.spawn(move || {
                let barrier = Barrier(words);
                while tickets.fetch_add(1, Ordering::Relaxed) < 800 {
                    let arrival = loop {
                        match barrier.arrive(2, true, 1).unwrap() {
                            Some(arrival) => break arrival,
                            None => assert_eq!(barrier.wait_for_room(None, |_| true), Ok(true)),
                        }
                    };
                    if arrival.part == Part::Act {
                        actions.fetch_add(1, Ordering::Relaxed);
                        barrier.finish(arrival, 2, false).unwrap();
                    } else {
                        assert_eq!(barrier.wait(arrival, None, |_| true), Ok(Ok(())));
                    }
                }
            });
        }
    });
    assert_eq!(actions.load(Ordering::Relaxed), 400);
}
