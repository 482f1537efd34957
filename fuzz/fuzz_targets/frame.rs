//! Any bytes as frames, cut anywhere: the decoder takes each byte once, and no length that cannot be.
#![no_main]

use _core::ipc::frame::{Decoder, next_room};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (u8, &[u8])| {
    let (step, mut rest) = data;
    let step = usize::from(step) + 1;
    let mut decoder = Decoder::default();
    while !rest.is_empty() {
        if decoder.is_complete() {
            decoder = Decoder::default();
        }
        let taken = if let Some(gap) = decoder.missing_length() {
            assert!(!gap.is_empty());
            let taken = gap.len().min(step).min(rest.len());
            gap[..taken].copy_from_slice(&rest[..taken]);
            taken
        } else {
            let size = decoder.size().expect("known once the body has begun");
            assert!(size <= 1 << 47);
            let room = next_room(size, decoder.received());
            assert!(room <= size);
            (size - decoder.received()).min(step).min(rest.len())
        };
        if decoder.advance(taken).is_err() {
            return;
        }
        rest = &rest[taken..];
        assert!(decoder.size().is_none_or(|size| decoder.received() <= size));
    }
});
