//! Plain values as pickles: what is written, what is read. No Python.
//!
//! What is written is a pickle of protocol 4 that any unpickler reads, in the simplest of the forms
//! that pickle has for a value: no frames, no memo.
//!
//! ```text
//!  value           written as                          also read
//!  --------------  ----------------------------------  ------------------------------------
//!  None, bool      N, \x88, \x89
//!  int             K u8, M u16, J i32,
//!                  \x8a n (u8) and little endian       (longer ones are not plain)
//!  float           G f64, big endian
//!  str             \x8c n (u8), X n (u32) and UTF-8    \x8d n (u64)
//!  bytes           C n (u8), B n (u32) and the bytes   \x8e n (u64)
//!  tuple           ), or 1 to 3 items and \x85..\x87,
//!                  or ( items t
//!  list            ] or ]( items e                     a, e again and again
//!  dict            } or }( keys and values u           s, u again and again
//!  whole           \x80 4, a value, .                  protocols up to 5
//! ```
//! The C pickler also writes frames (`\x95`) and gives a number to whatever may come again (`\x94`;
//! `q` before protocol 4). These are passed over; a pickle that uses such a number is not plain.

pub mod read;
pub mod seen;
pub mod write;

#[cfg(test)]
mod tests;
#[cfg(any(test, fuzzing))]
pub mod value;

const PROTO: u8 = 0x80;
const STOP: u8 = b'.';
const NONE: u8 = b'N';
const TRUE: u8 = 0x88;
const FALSE: u8 = 0x89;
const BININT1: u8 = b'K';
const BININT2: u8 = b'M';
const BININT: u8 = b'J';
const LONG1: u8 = 0x8a;
const BINFLOAT: u8 = b'G';
const SHORT_BINUNICODE: u8 = 0x8c;
const BINUNICODE: u8 = b'X';
const BINUNICODE8: u8 = 0x8d;
const SHORT_BINBYTES: u8 = b'C';
const BINBYTES: u8 = b'B';
const BINBYTES8: u8 = 0x8e;
const MARK: u8 = b'(';
const EMPTY_TUPLE: u8 = b')';
const TUPLE1: u8 = 0x85;
const TUPLE2: u8 = 0x86;
const TUPLE3: u8 = 0x87;
const TUPLE: u8 = b't';
const EMPTY_LIST: u8 = b']';
const APPEND: u8 = b'a';
const APPENDS: u8 = b'e';
const EMPTY_DICT: u8 = b'}';
const SETITEM: u8 = b's';
const SETITEMS: u8 = b'u';
const FRAME: u8 = 0x95;
const MEMOIZE: u8 = 0x94;
const BINPUT: u8 = b'q';

/// The protocol that is written.
const WRITTEN: u8 = 4;
/// The newest protocol that is read.
const NEWEST: u8 = 5;
