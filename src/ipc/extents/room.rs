//! The memory behind a pool of extents: what is idle, and where new ones go.
//!
//! *Process-local*, the sender's.
//!
//! ```text
//!  file space   never used, or a hole ──► large spot ◄──► in use      put: idle, 256 MiB at most,
//!                  ▲            │                                     the rest is punched
//!                  │            └───────► chunk ──► small spots ◄──► in use
//!                  └─────────── punched ◄───┘ none in use, and there are enough such chunks
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{CHUNK, LARGE};
use crate::sys::segment::{Map, PAGE, Segment};

/// Sizes of small spots.
const CLASSES: [usize; 14] = [
    512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
];

/// How many chunks are kept although nothing in them is in use.
const SPARE_CHUNKS: usize = 16;

/// Where an extent is in the file.
#[derive(Debug)]
pub struct Spot {
    pub offset: usize,
    pub capacity: usize,
    /// what it is mapped by, and the offset in the file at which that begins
    pub map: Option<Arc<Map>>,
    pub base: usize,
    /// has been written before: its pages exist
    pub used: bool,
}

#[derive(Debug)]
pub struct Room {
    /// behind everything that was ever used
    end: usize,
    /// offset and length of what is not used any more
    holes: BTreeMap<usize, usize>,
    /// the one that came back first is the first
    large: Vec<Spot>,
    large_bytes: usize,
    small: [Vec<Spot>; CLASSES.len()],
    /// how many spots of each chunk are in use, by its offset
    chunks: HashMap<usize, usize>,
    spare_chunks: usize,
}

/// Capacities are multiples of a sixteenth of their size, so that spots fit similar messages, too.
fn rounded(len: usize) -> usize {
    let step = (len.next_power_of_two() / 32).max(PAGE);
    len.checked_next_multiple_of(step).unwrap_or(len)
}

fn class(len: usize) -> Option<usize> {
    CLASSES.iter().position(|&size| len <= size)
}

impl Room {
    pub fn new(start: usize) -> Self {
        Self {
            end: start,
            holes: BTreeMap::new(),
            large: Vec::new(),
            large_bytes: 0,
            small: Default::default(),
            chunks: HashMap::new(),
            spare_chunks: 0,
        }
    }

    /// How much of the room a message of this length takes.
    pub fn capacity(len: usize) -> usize {
        class(len).map_or_else(|| rounded(len.max(LARGE)), |class| CLASSES[class])
    }

    /// A spot for `len` bytes. Memory for a new large one is taken when it is written.
    pub fn take(&mut self, len: usize, segment: &Segment) -> nix::Result<Spot> {
        match class(len) {
            Some(class) => self.take_small(class, segment),
            None => Ok(self.take_large(rounded(len.max(LARGE)))),
        }
    }

    /// Whether a spot for `len` bytes is at hand that has been used before.
    pub fn has_idle(&self, len: usize) -> bool {
        match class(len) {
            Some(class) => !self.small[class].is_empty(),
            None => self.best(rounded(len.max(LARGE))).is_some(),
        }
    }

    fn best(&self, capacity: usize) -> Option<usize> {
        let fits = |spot: &Spot| spot.capacity >= capacity && spot.capacity / 2 <= capacity;
        let candidates = self.large.iter().enumerate().rev();
        candidates
            .filter(|(_, spot)| fits(spot))
            .min_by_key(|(_, spot)| spot.capacity)
            .map(|(index, _)| index)
    }

    fn take_large(&mut self, capacity: usize) -> Spot {
        if let Some(index) = self.best(capacity) {
            let spot = self.large.remove(index);
            self.large_bytes -= spot.capacity;
            return spot;
        }
        let offset = self.place(capacity, PAGE);
        Spot {
            offset,
            capacity,
            map: None,
            base: offset,
            used: false,
        }
    }

    fn take_small(&mut self, class: usize, segment: &Segment) -> nix::Result<Spot> {
        if self.small[class].is_empty() {
            self.carve(class, segment)?;
        }
        let spot = self.small[class].pop().expect("a chunk has spots");
        let in_use = self.chunks.get_mut(&spot.base).expect("a chunk of ours");
        if *in_use == 0 {
            self.spare_chunks -= 1;
        }
        *in_use += 1;
        Ok(spot)
    }

    fn carve(&mut self, class: usize, segment: &Segment) -> nix::Result<()> {
        let base = self.place(CHUNK, CHUNK);
        let map = segment.reserve(base, base + CHUNK).and_then(|()| {
            let map = segment.map_shared(base, CHUNK)?;
            map.prefault();
            Ok(Arc::new(map))
        });
        let map = map.inspect_err(|_| self.vacate(base, CHUNK))?;
        let size = CLASSES[class];
        let spots = (0..CHUNK / size).rev().map(|index| Spot {
            offset: base + index * size,
            capacity: size,
            map: Some(Arc::clone(&map)),
            base,
            used: true,
        });
        self.small[class].extend(spots);
        self.chunks.insert(base, 0);
        self.spare_chunks += 1;
        Ok(())
    }

    /// Takes back a spot, and returns what is now too much: to be punched and then vacated.
    pub fn put(&mut self, spot: Spot, idle_bytes: usize) -> Vec<Spot> {
        if spot.capacity < LARGE {
            return self.put_small(spot);
        }
        self.large_bytes += spot.capacity;
        self.large.push(spot);
        self.trim(idle_bytes)
    }

    /// Gives up large spots, the oldest first, until at most so many bytes are idle in them.
    pub fn trim(&mut self, idle_bytes: usize) -> Vec<Spot> {
        let mut excess = Vec::new();
        while self.large_bytes > idle_bytes {
            let oldest = self.large.remove(0);
            self.large_bytes -= oldest.capacity;
            excess.push(oldest);
        }
        excess
    }

    fn put_small(&mut self, spot: Spot) -> Vec<Spot> {
        let base = spot.base;
        let class = class(spot.capacity).expect("a small spot");
        self.small[class].push(spot);
        let in_use = self.chunks.get_mut(&base).expect("a chunk of ours");
        *in_use -= 1;
        if *in_use > 0 {
            return Vec::new();
        }
        if self.spare_chunks < SPARE_CHUNKS {
            self.spare_chunks += 1;
            return Vec::new();
        }
        self.chunks.remove(&base);
        self.small[class].retain(|spot| spot.base != base);
        vec![Spot {
            offset: base,
            capacity: CHUNK,
            map: None,
            base,
            used: true,
        }]
    }

    /// A place in the file.
    fn place(&mut self, len: usize, align: usize) -> usize {
        let found = self.holes.iter().find_map(|(&hole, &size)| {
            let offset = hole.next_multiple_of(align);
            (offset + len <= hole + size).then_some((hole, size, offset))
        });
        if let Some((hole, size, offset)) = found {
            self.holes.remove(&hole);
            self.vacate(hole, offset - hole);
            self.vacate(offset + len, hole + size - offset - len);
            return offset;
        }
        let (hole, offset) = (self.end, self.end.next_multiple_of(align));
        self.end = offset + len;
        self.vacate(hole, offset - hole);
        offset
    }

    /// Nothing is in this part of the file any more.
    pub fn vacate(&mut self, mut offset: usize, mut len: usize) {
        if len == 0 {
            return;
        }
        if let Some((&before, &size)) = self.holes.range(..offset).next_back()
            && before + size == offset
        {
            self.holes.remove(&before);
            (offset, len) = (before, len + size);
        }
        if let Some(size) = self.holes.remove(&(offset + len)) {
            len += size;
        }
        if offset + len == self.end {
            self.end = offset;
        } else {
            self.holes.insert(offset, len);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn segment() -> Arc<Segment> {
        Segment::create(c"test", PAGE).unwrap()
    }

    #[test]
    fn spots_do_not_overlap_and_come_back() {
        let (mut room, segment) = (Room::new(PAGE), segment());
        let sizes = [1, 512, 513, 5000, 49152, 49153, LARGE, 1 << 20, 3 << 20];
        let mut seen = Vec::new();
        for _ in 0..2 {
            let spots: Vec<_> = sizes
                .iter()
                .map(|&len| room.take(len, &segment).unwrap())
                .collect();
            let mut ranges: Vec<_> = spots.iter().map(|s| (s.offset, s.capacity)).collect();
            ranges.sort_unstable();
            assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
            assert!(spots.iter().zip(sizes).all(|(s, len)| s.capacity >= len));
            assert!(
                spots
                    .iter()
                    .all(|s| s.capacity < LARGE || s.offset % PAGE == 0)
            );
            seen.push(ranges);
            for spot in spots {
                assert!(room.put(spot, usize::MAX).is_empty());
            }
        }
        assert_eq!(seen[0], seen[1]);
    }

    #[test]
    fn what_is_idle_is_bounded_and_its_place_used_again() {
        let (mut room, segment) = (Room::new(PAGE), segment());
        let one = room.take(1 << 20, &segment).unwrap();
        let two = room.take(1 << 20, &segment).unwrap();
        let first = one.offset;
        assert!(room.put(one, 1 << 20).is_empty());
        let excess = room.put(two, 1 << 20);
        assert_eq!(excess.iter().map(|s| s.offset).collect::<Vec<_>>(), [first]);
        room.vacate(first, excess[0].capacity);
        assert_eq!(room.take(256 << 10, &segment).unwrap().offset, first);
        assert!(room.has_idle(1 << 20) && !room.has_idle(2 << 20) && !room.has_idle(LARGE));
    }

    #[test]
    fn chunks_that_nobody_uses_are_given_back() {
        let (mut room, segment) = (Room::new(PAGE), segment());
        let count = (SPARE_CHUNKS + 4) * (CHUNK / 32768);
        let spots: Vec<_> = (0..count)
            .map(|_| room.take(32768, &segment).unwrap())
            .collect();
        let excess: Vec<_> = spots
            .into_iter()
            .flat_map(|spot| room.put(spot, 0))
            .collect();
        assert_eq!(excess.len(), 4);
        assert!(excess.iter().all(|s| s.capacity == CHUNK));
        assert!(room.has_idle(32768));
    }

    #[test]
    fn holes_grow_together() {
        let mut room = Room::new(0);
        let places: Vec<_> = (0..4).map(|_| room.place(PAGE, PAGE)).collect();
        for place in [places[0], places[2], places[1]] {
            room.vacate(place, PAGE);
        }
        assert_eq!(room.holes.iter().collect::<Vec<_>>(), [(&0, &(3 * PAGE))]);
        room.vacate(places[3], PAGE);
        assert!(room.holes.is_empty() && room.end == 0);
    }
}
