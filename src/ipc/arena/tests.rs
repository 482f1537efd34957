//! Blocks in one process.

use std::sync::atomic::Ordering;

use super::*;

#[test]
fn blocks_do_not_overlap_and_are_zero() {
    let blocks: Vec<_> = (1..200).map(|n| Block::new(n * 37).unwrap()).collect();
    let mut ranges: Vec<_> = blocks
        .iter()
        .map(|b| (b.address().as_ptr() as usize, b.size()))
        .collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
    for block in &blocks {
        assert_eq!(block.line()[0].swap(1, Ordering::Relaxed), 0);
    }
}

#[test]
fn what_is_freed_is_used_again_and_zero() {
    for _ in 0..100_000 {
        let block = Block::new(100).unwrap();
        assert_eq!(block.line()[0].swap(7, Ordering::Relaxed), 0);
    }
    assert!(STATE.lock().known.len() < 50);
}

#[test]
fn a_big_block_has_a_segment_of_its_own_that_goes_with_it() {
    let block = Block::new(80_000_000).unwrap();
    let segment = Arc::downgrade(block.segment());
    assert_eq!(block.line()[0].load(Ordering::Relaxed), 0);
    drop(block);
    assert!(segment.upgrade().is_none());
}

#[test]
fn a_foreign_block_has_to_lie_in_its_segment() {
    let block = Block::new(64).unwrap();
    let segment = block.segment();
    for (offset, size) in [
        (0, 64),
        (block.offset() + 1, 64),
        (usize::MAX, 64),
        (64, usize::MAX),
    ] {
        assert_eq!(
            Block::foreign(Arc::clone(segment), offset, size).unwrap_err(),
            Errno::EINVAL
        );
    }
    assert!(Block::foreign(Arc::clone(segment), block.offset(), 64).is_ok());
}
