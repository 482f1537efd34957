//! The wire format of connections: a length, then as many bytes.
//!
//! ```text
//! up to 2 GiB - 1     | length: i32, big endian | body |
//! from 2 GiB          | -1: i32, big endian     | length: u64, big endian | body |
//! ```
//! It is multiprocessing's. Nothing here reads or writes: the encoder makes the bytes that go in
//! front, the decoder says what is wanted next and is told what came, so that a frame can be cut
//! anywhere and taken up again.

/// The longest body whose length fits the short form.
const SHORT_MAX: usize = i32::MAX as usize;
/// In place of a short length: the long one follows.
const LONG_FOLLOWS: i32 = -1;
/// No process can hold more (47 bits of address space): such a length is forged or garbage.
const LONGEST_BODY: u64 = 1 << 47;

/// What goes in front of a body. Process-local, a value.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; 12],
    len: usize,
}

impl Header {
    pub fn of(body_len: usize) -> Self {
        let mut bytes = [0; 12];
        if body_len <= SHORT_MAX {
            bytes[..4].copy_from_slice(&(body_len as i32).to_be_bytes());
            return Self { bytes, len: 4 };
        }
        bytes[..4].copy_from_slice(&LONG_FOLLOWS.to_be_bytes());
        bytes[4..].copy_from_slice(&(body_len as u64).to_be_bytes());
        Self { bytes, len: 12 }
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A length that no sender of ours writes: negative, or more than memory can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadLength;

/// The stages of a frame that is being received:
///
/// ```text
///            4 bytes: 0 <= n            all n bytes
/// Length ─────────────────────► Body ─────────────────► (complete)
///    │ 4 bytes: -1               ▲
///    └─────────► LongLength ─────┘ 8 bytes: n
///    any other length: BadLength
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Length,
    LongLength,
    Body,
}

/// Where a frame that is being received stands. Process-local, a value: a forked child has a copy
/// that only makes sense if it alone goes on reading.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    stage: Stage,
    /// Bytes received of this stage.
    have: usize,
    raw: [u8; 8],
    /// Length of the body, once known.
    size: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            stage: Stage::Length,
            have: 0,
            raw: [0; 8],
            size: 0,
        }
    }
}

impl Decoder {
    /// The bytes of a length that are still missing, to be filled from the front; `None` once the
    /// body has begun.
    pub fn missing_length(&mut self) -> Option<&mut [u8]> {
        match self.stage {
            Stage::Length => Some(&mut self.raw[self.have..4]),
            Stage::LongLength => Some(&mut self.raw[self.have..8]),
            Stage::Body => None,
        }
    }

    /// `n` more bytes of what [`Self::missing_length`] asked for, or of the body, have come.
    pub fn advance(&mut self, n: usize) -> Result<(), BadLength> {
        self.have += n;
        match self.stage {
            Stage::Length if self.have == 4 => {
                let [a, b, c, d, ..] = self.raw;
                match i32::from_be_bytes([a, b, c, d]) {
                    LONG_FOLLOWS => self.enter(Stage::LongLength),
                    short => {
                        self.size = usize::try_from(short).map_err(|_| BadLength)?;
                        self.enter(Stage::Body);
                    }
                }
            }
            Stage::LongLength if self.have == 8 => {
                let long = u64::from_be_bytes(self.raw);
                if long > LONGEST_BODY {
                    return Err(BadLength);
                }
                self.size = usize::try_from(long).map_err(|_| BadLength)?;
                self.enter(Stage::Body);
            }
            _ => {}
        }
        Ok(())
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.have = 0;
    }

    /// Length of the body; `None` until it is known.
    pub fn size(&self) -> Option<usize> {
        (self.stage == Stage::Body).then_some(self.size)
    }

    /// Bytes of the body that have come.
    pub fn received(&self) -> usize {
        if self.stage == Stage::Body {
            self.have
        } else {
            0
        }
    }

    pub fn is_complete(&self) -> bool {
        self.stage == Stage::Body && self.have >= self.size
    }

    /// No byte of this frame has come yet.
    pub fn is_fresh(&self) -> bool {
        self.stage == Stage::Length && self.have == 0
    }

    /// No byte of this stage has come: an end of file here is what multiprocessing reports as
    /// `EOFError`, while one further on is an error in the message.
    pub fn is_at_seam(&self) -> bool {
        self.have == 0
    }
}

/// Room to make at first for a body that claims `size` bytes.
const FIRST_ROOM: usize = 16 << 20;
/// How much a body's room grows when all of it has been filled.
const GROWTH: usize = 16;

/// How much room a body of `size` bytes should have when `room` bytes are full.
///
/// A length is only a claim until its bytes come: a forged one gets [`FIRST_ROOM`] and no more.
pub fn next_room(size: usize, room: usize) -> usize {
    size.min(room.saturating_mul(GROWTH).max(FIRST_ROOM))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*: enough to cut frames at odd places, and the same cuts every time.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
        }
    }

    /// Feeds `wire` in pieces of at most `step` bytes; returns the bodies.
    fn decode(wire: &[u8], mut step: impl FnMut() -> usize) -> Result<Vec<Vec<u8>>, BadLength> {
        let (mut at, mut bodies, mut body) = (0, Vec::new(), Vec::new());
        let mut decoder = Decoder::default();
        loop {
            if decoder.is_complete() {
                bodies.push(std::mem::take(&mut body));
                decoder = Decoder::default();
                continue;
            }
            let left = &wire[at..];
            if left.is_empty() {
                return Ok(bodies);
            }
            let received = decoder.received();
            let size = decoder.size();
            let n = if let Some(gap) = decoder.missing_length() {
                let n = gap.len().min(step()).min(left.len());
                gap[..n].copy_from_slice(&left[..n]);
                n
            } else {
                let n = (size.unwrap() - received).min(step()).min(left.len());
                body.extend_from_slice(&left[..n]);
                n
            };
            at += n;
            decoder.advance(n)?;
        }
    }

    #[test]
    fn frames_survive_any_cutting() {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        for _ in 0..500 {
            let mut wire = Vec::new();
            let mut sent = Vec::new();
            for _ in 0..dice.roll(6) {
                let body: Vec<u8> = (0..dice.roll(300)).map(|_| dice.roll(256) as u8).collect();
                if dice.roll(3) == 0 {
                    // the long form is legal for short bodies too
                    wire.extend_from_slice(&LONG_FOLLOWS.to_be_bytes());
                    wire.extend_from_slice(&(body.len() as u64).to_be_bytes());
                } else {
                    wire.extend_from_slice(Header::of(body.len()).as_slice());
                }
                wire.extend_from_slice(&body);
                sent.push(body);
            }
            let longest = 1 + dice.roll(40);
            assert_eq!(decode(&wire, || 1 + dice.roll(longest)), Ok(sent));
        }
    }

    #[test]
    fn garbage_never_panics_and_never_claims_the_impossible() {
        let mut dice = Dice(42);
        for _ in 0..20_000 {
            let mut decoder = Decoder::default();
            while let Some(gap) = decoder.missing_length() {
                let n = 1 + dice.roll(gap.len());
                for byte in &mut gap[..n] {
                    *byte = if dice.roll(2) == 0 {
                        0xff
                    } else {
                        dice.roll(256) as u8
                    };
                }
                if decoder.advance(n).is_err() {
                    break;
                }
            }
            if let Some(size) = decoder.size() {
                assert!(size as u64 <= LONGEST_BODY);
                assert!(next_room(size, 0) <= FIRST_ROOM);
            }
        }
    }

    #[test]
    fn the_long_form_begins_at_two_gib() {
        assert_eq!(Header::of(SHORT_MAX).as_slice(), [0x7f, 0xff, 0xff, 0xff]);
        let long = Header::of(SHORT_MAX + 1);
        assert_eq!(
            long.as_slice(),
            [255, 255, 255, 255, 0, 0, 0, 0, 0x80, 0, 0, 0]
        );
        let mut decoder = Decoder::default();
        for part in [&long.as_slice()[..4], &long.as_slice()[4..]] {
            decoder.missing_length().unwrap().copy_from_slice(part);
            decoder.advance(part.len()).unwrap();
        }
        assert_eq!(decoder.size(), Some(SHORT_MAX + 1));
    }

    #[test]
    fn forged_lengths_are_refused() {
        for forged in [(-2i32), i32::MIN] {
            assert_eq!(decode(&forged.to_be_bytes(), || 4), Err(BadLength));
        }
        let mut wire = LONG_FOLLOWS.to_be_bytes().to_vec();
        wire.extend_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(decode(&wire, || 8), Err(BadLength));
    }

    #[test]
    fn room_follows_what_has_come() {
        assert_eq!(next_room(100, 0), 100);
        assert_eq!(next_room(1 << 40, 0), FIRST_ROOM);
        assert_eq!(next_room(1 << 40, FIRST_ROOM), GROWTH * FIRST_ROOM);
        assert_eq!(next_room(usize::MAX, usize::MAX / 2), usize::MAX);
    }
}
