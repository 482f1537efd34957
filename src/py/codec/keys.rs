//! The strings that have been keys of dicts lately.
//!
//! The dicts of a message, and those of the next one, mostly have the same few keys. To find the
//! string here costs less than to make it anew, and its hash is known already.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;

/// Longer ones are not kept.
const LONGEST: usize = 24;
const PLACES: usize = 256;

/// A short string in three words that no other string has.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Text {
    words: [u64; 3],
    len: usize,
}

impl Text {
    #[inline]
    fn new(text: &[u8]) -> Option<Self> {
        // Words may overlap: together with the length they still say what each byte is.
        let long = |word: Option<&[u8; 8]>| Some(u64::from_le_bytes(*word?));
        let short = |word: Option<&[u8; 4]>| Some(u64::from(u32::from_le_bytes(*word?)));
        let words = match text {
            [_, .., _] if text.len() > LONGEST => return None,
            [_, _, _, _, _, _, _, _, rest @ ..] => {
                let first = long(text.first_chunk())?;
                let middle = long(rest.first_chunk()).unwrap_or(0);
                [first, middle, long(text.last_chunk())?]
            }
            [_, _, _, _, ..] => [short(text.first_chunk())?, 0, short(text.last_chunk())?],
            [a, b, c] => [u64::from_le_bytes([*a, *b, *c, 0, 0, 0, 0, 0]), 0, 0],
            [a, b] => [u64::from_le_bytes([*a, *b, 0, 0, 0, 0, 0, 0]), 0, 0],
            [a] => [u64::from(*a), 0, 0],
            [] => return None,
        };
        Some(Self {
            words,
            len: text.len(),
        })
    }

    fn place(&self) -> usize {
        let [a, b, c] = self.words;
        let mixed = a ^ b.rotate_left(23) ^ c.rotate_left(46) ^ self.len as u64;
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % PLACES
    }
}

/// A string that is kept: its text, and a reference to it unless it is null.
struct Entry {
    text: Text,
    object: *mut ffi::PyObject,
}

/// Each text has one place, and the last one to come has it. Process-local; a forked child goes on
/// with its copy. The references are never given back, as those of any module's constants.
pub struct Keys(UnsafeCell<[Entry; PLACES]>);

// SAFETY: the cell is only opened in `get`, with the GIL, which `get` neither lets go of while it
// looks at entries nor needs for anything that runs other code.
unsafe impl Sync for Keys {}

pub static KEYS: Keys = Keys(UnsafeCell::new(
    [const {
        Entry {
            text: Text {
                words: [0; 3],
                len: 0,
            },
            object: ptr::null_mut(),
        }
    }; PLACES],
));

impl Keys {
    /// The string of a text, `make` makes it if it is not here.
    #[inline]
    pub fn get<'py>(
        &self,
        py: Python<'py>,
        bytes: &[u8],
        make: impl FnOnce(&[u8]) -> Option<Bound<'py, PyAny>>,
    ) -> Option<Bound<'py, PyAny>> {
        let Some(text) = Text::new(bytes) else {
            return make(bytes);
        };
        let place = text.place();
        // SAFETY: we have the GIL, and nobody else a reference into the cell.
        let found = unsafe {
            let entry = &(*self.0.get())[place];
            // an entry that was never used has a length that no text has
            if entry.text == text {
                entry.object
            } else {
                ptr::null_mut()
            }
        };
        if !found.is_null() {
            // SAFETY: the entry has a reference to it.
            return Some(unsafe { Bound::from_borrowed_ptr(py, found) });
        }
        let made = make(bytes)?;
        let object = made.clone().into_ptr();
        // SAFETY: as above. What `make` may have run is over.
        let old = unsafe {
            let entry = &mut (*self.0.get())[place];
            entry.text = text;
            std::mem::replace(&mut entry.object, object)
        };
        // SAFETY: the entry's reference, if it had one, is ours now.
        drop(unsafe { Bound::from_owned_ptr_or_opt(py, old) });
        Some(made)
    }
}
