//! What loom can say of the barrier.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::ipc::word_model::{ModelWord, check};

fn model() -> Arc<[ModelWord; WORDS]> {
    Arc::new([0; WORDS].map(ModelWord::new))
}

fn meet(words: &[ModelWord], parties: u32, action: bool) -> Result<u32, Broken> {
    let barrier = Barrier(words);
    loop {
        if let Some(arrival) = barrier.arrive(parties, action, 1)? {
            match arrival.part {
                Part::Go => {}
                Part::Act => barrier.finish(arrival, parties, false)?,
                Part::Wait => barrier.wait(arrival, None, |_| true).unwrap()?,
            }
            return Ok(arrival.index);
        }
        barrier.wait_for_room(None, |_| true).unwrap();
    }
}

#[test]
fn loom_two_meet_twice() {
    check(2, || {
        let words = model();
        let other = {
            let words = words.clone();
            thread::spawn(move || [0; 2].map(|_| meet(&words[..], 2, true).unwrap()))
        };
        let mine = [0; 2].map(|_| meet(&words[..], 2, true).unwrap());
        let theirs = other.join().unwrap();
        assert!((0..2).all(|round| mine[round] + theirs[round] == 1));
    });
}

#[test]
fn loom_nobody_waits_at_a_broken_one() {
    check(3, || {
        let words = model();
        let waiter = {
            let words = words.clone();
            thread::spawn(move || meet(&words[..], 2, false))
        };
        Barrier(&words[..]).abort();
        assert_eq!(waiter.join().unwrap(), Err(Broken));
    });
}

#[test]
fn loom_a_reset_breaks_it_for_those_who_wait_and_nobody_else() {
    check(3, || {
        let words = model();
        let arrival = Barrier(&words[..]).arrive(2, false, 1).unwrap().unwrap();
        let resetter = {
            let words = words.clone();
            thread::spawn(move || Barrier(&words[..]).reset())
        };
        assert_eq!(
            Barrier(&words[..]).wait(arrival, None, |_| true),
            Ok(Err(Broken))
        );
        resetter.join().unwrap();
        assert!(Barrier(&words[..]).arrive(2, false, 1).is_ok());
    });
}
