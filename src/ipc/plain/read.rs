//! Reading plain values: the machine that a pickle is a program for.
//!
//! Nothing recurses, and nothing is made room for before it is there.

use smallvec::SmallVec;

use super::*;

/// Marks that may be open at once.
pub const DEEPEST: usize = 128;

/// Makes values of what is read; `None` from any of them ends the reading.
pub trait Maker {
    type Value;
    fn none(&mut self) -> Self::Value;
    fn bool(&mut self, value: bool) -> Self::Value;
    fn int(&mut self, value: i64) -> Option<Self::Value>;
    /// An integer as little-endian two's complement, of more than 8 bytes.
    fn long(&mut self, bytes: &[u8]) -> Option<Self::Value>;
    fn float(&mut self, value: f64) -> Option<Self::Value>;
    fn str(&mut self, text: &[u8]) -> Option<Self::Value>;
    /// A string that is likely to be the key of a dict, and then likely to have come before.
    fn key(&mut self, text: &[u8]) -> Option<Self::Value>;
    fn bytes(&mut self, bytes: &[u8]) -> Option<Self::Value>;
    fn tuple(&mut self, items: impl ExactSizeIterator<Item = Self::Value>) -> Option<Self::Value>;
    fn list(&mut self, items: impl ExactSizeIterator<Item = Self::Value>) -> Option<Self::Value>;
    /// From keys and values in turn, an even number together.
    fn dict(&mut self, items: impl ExactSizeIterator<Item = Self::Value>) -> Option<Self::Value>;
    /// `list` with more items; `None` also if it is no list.
    fn extend(
        &mut self,
        list: Self::Value,
        items: impl ExactSizeIterator<Item = Self::Value>,
    ) -> Option<Self::Value>;
    /// `dict` with more keys and values; `None` also if it is no dict.
    fn update(
        &mut self,
        dict: Self::Value,
        items: impl ExactSizeIterator<Item = Self::Value>,
    ) -> Option<Self::Value>;
}

/// The value of a pickle, to its last byte; `None` if it is not plain or no pickle.
#[inline]
pub fn read<M: Maker>(bytes: &[u8], maker: &mut M) -> Option<M::Value> {
    let mut input = Input { rest: bytes };
    let mut op = input.byte()?;
    if op == PROTO {
        if input.byte()? > NEWEST {
            return None;
        }
        op = input.byte()?;
    }
    // The C pickler has written this. It may be anything, and nothing is to be made in vain.
    if op == FRAME && !is_known(input.rest.get(8..)?) {
        return None;
    }
    // Most values come alone, and need no machine.
    let first = scalar(op, &mut input, maker, false)?;
    if first.is_some() && input.rest == [STOP] {
        return first;
    }
    run(op, first, input, maker)
}

/// What is left to read.
struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*array)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    /// As many bytes as the length in front of them, of `N` bytes itself, says.
    #[inline]
    fn sized<const N: usize>(&mut self) -> Option<&'a [u8]> {
        let mut len = [0; 8];
        len[..N].copy_from_slice(&self.array::<N>()?);
        self.take(usize::try_from(u64::from_le_bytes(len)).ok()?)
    }

    /// The length of a frame, which has to be there. That a frame ends is of no interest.
    fn frame(&mut self) -> Option<()> {
        let len = u64::from_le_bytes(self.array()?);
        (len <= self.rest.len() as u64).then_some(())
    }

    /// Takes `op` if it is next.
    #[inline]
    fn skip(&mut self, op: u8) -> bool {
        let found = self.rest.first() == Some(&op);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }
}

/// The value that `op` begins; `Some(None)` if it begins none.
#[inline(always)]
fn scalar<M: Maker>(
    op: u8,
    input: &mut Input<'_>,
    maker: &mut M,
    at_key: bool,
) -> Option<Option<M::Value>> {
    let value = match op {
        BININT1 => maker.int(i64::from(input.byte()?))?,
        BININT2 => maker.int(i64::from(u16::from_le_bytes(input.array()?)))?,
        BININT => maker.int(i64::from(i32::from_le_bytes(input.array()?)))?,
        LONG1 => long(input.sized::<1>()?, maker)?,
        SHORT_BINUNICODE if at_key => maker.key(input.sized::<1>()?)?,
        SHORT_BINUNICODE => maker.str(input.sized::<1>()?)?,
        BINUNICODE => maker.str(input.sized::<4>()?)?,
        BINUNICODE8 => maker.str(input.sized::<8>()?)?,
        BINFLOAT => maker.float(f64::from_be_bytes(input.array()?))?,
        NONE => maker.none(),
        TRUE => maker.bool(true),
        FALSE => maker.bool(false),
        SHORT_BINBYTES => maker.bytes(input.sized::<1>()?)?,
        BINBYTES => maker.bytes(input.sized::<4>()?)?,
        BINBYTES8 => maker.bytes(input.sized::<8>()?)?,
        _ => return Some(None),
    };
    Some(Some(value))
}

fn long<M: Maker>(bytes: &[u8], maker: &mut M) -> Option<M::Value> {
    if bytes.len() > 8 {
        return maker.long(bytes);
    }
    let negative = bytes.last().is_some_and(|last| *last >= 0x80);
    let mut all = if negative { [0xff; 8] } else { [0; 8] };
    all[..bytes.len()].copy_from_slice(bytes);
    maker.int(i64::from_le_bytes(all))
}

/// What the values after a mark are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A tuple, or the list or dict below the mark.
    Items,
    /// A list that is made when its items are there.
    List,
    /// A dict that is made when its items are there.
    Dict,
}

#[derive(Clone, Copy)]
struct Mark {
    kind: Kind,
    /// How many values were there.
    floor: usize,
}

/// The values that wait for what they are part of.
///
/// ```text
///  read          values                           marks
///  ------------  -------------------------------  ----------------------------------------
///  a value       one more
///  (             the same                         one more: List right after ], Dict after }
///  t, e, u       those above the mark become one  one less
///  \x85..\x87    the last 1, 2, 3 become one      none may be among these
///  .             the only one is the result       none may be there
/// ```
struct Machine<V> {
    values: SmallVec<[V; 32]>,
    marks: SmallVec<[Mark; 8]>,
    /// Values below are on the other side of the last mark.
    floor: usize,
    /// The last mark is a `Dict`.
    in_dict: bool,
}

impl<V> Machine<V> {
    fn mark(&mut self, kind: Kind) -> Option<()> {
        if self.marks.len() == DEEPEST {
            return None;
        }
        self.floor = self.values.len();
        self.in_dict = kind == Kind::Dict;
        self.marks.push(Mark {
            kind,
            floor: self.floor,
        });
        Some(())
    }

    /// Takes the last mark away: what the values above its floor are for, and the floor.
    fn unmark(&mut self) -> Option<(Kind, usize)> {
        let mark = self.marks.pop()?;
        let last = self.marks.last();
        self.floor = last.map_or(0, |mark| mark.floor);
        self.in_dict = last.is_some_and(|mark| mark.kind == Kind::Dict);
        Some((mark.kind, mark.floor))
    }

    /// The last `len` values.
    fn last(&mut self, len: usize) -> Option<impl ExactSizeIterator<Item = V>> {
        let at = self.values.len().checked_sub(len)?;
        (at >= self.floor).then(|| self.values.drain(at..))
    }

    /// The value in front of the last `len`, and these.
    fn last_but(&mut self, len: usize) -> Option<(V, impl ExactSizeIterator<Item = V>)> {
        let mut items = self.last(len + 1)?;
        Some((items.next()?, items))
    }

    /// Whether the key of a dict is next, unless a tuple of up to three is begun.
    fn at_key(&self) -> bool {
        self.in_dict && (self.values.len() - self.floor).is_multiple_of(2)
    }

    /// An operation on values and marks; `None` if it is not possible or not ours.
    #[inline]
    fn step<M: Maker<Value = V>>(
        &mut self,
        op: u8,
        input: &mut Input<'_>,
        maker: &mut M,
    ) -> Option<()> {
        let value = match op {
            MARK => return self.mark(Kind::Items),
            EMPTY_TUPLE => maker.tuple(std::iter::empty())?,
            TUPLE1 => maker.tuple(self.last(1)?)?,
            TUPLE2 => maker.tuple(self.last(2)?)?,
            TUPLE3 => maker.tuple(self.last(3)?)?,
            TUPLE => {
                let (kind, at) = self.unmark()?;
                let tuple = maker.tuple(self.values.drain(at..))?;
                match kind {
                    Kind::Items => {}
                    // It was an empty one, and the mark that of the tuple after it.
                    Kind::List => self.values.push(maker.list(std::iter::empty())?),
                    Kind::Dict => self.values.push(maker.dict(std::iter::empty())?),
                }
                tuple
            }
            EMPTY_LIST => {
                input.skip(MEMOIZE);
                if input.skip(MARK) {
                    return self.mark(Kind::List);
                }
                maker.list(std::iter::empty())?
            }
            APPENDS => match self.unmark()? {
                (Kind::List, at) => maker.list(self.values.drain(at..))?,
                (Kind::Items, at) => {
                    let (list, items) = self.last_but(self.values.len() - at)?;
                    maker.extend(list, items)?
                }
                (Kind::Dict, _) => return None,
            },
            APPEND => {
                let (list, items) = self.last_but(1)?;
                maker.extend(list, items)?
            }
            EMPTY_DICT => {
                input.skip(MEMOIZE);
                if input.skip(MARK) {
                    return self.mark(Kind::Dict);
                }
                maker.dict(std::iter::empty())?
            }
            SETITEMS => {
                let (kind, at) = self.unmark()?;
                let len = self.values.len() - at;
                if !len.is_multiple_of(2) {
                    return None;
                }
                match kind {
                    Kind::Dict => maker.dict(self.values.drain(at..))?,
                    Kind::Items => {
                        let (dict, items) = self.last_but(len)?;
                        maker.update(dict, items)?
                    }
                    Kind::List => return None,
                }
            }
            SETITEM => {
                let (dict, items) = self.last_but(2)?;
                maker.update(dict, items)?
            }
            // The last value is to be found by this number. There has to be one.
            MEMOIZE => return (self.values.len() > self.floor).then_some(()),
            BINPUT => {
                return input
                    .byte()
                    .filter(|_| self.values.len() > self.floor)
                    .map(drop);
            }
            FRAME => return input.frame(),
            _ => return None,
        };
        self.values.push(value);
        Some(())
    }
}

#[inline(never)]
fn run<M: Maker>(
    op: u8,
    first: Option<M::Value>,
    mut input: Input<'_>,
    maker: &mut M,
) -> Option<M::Value> {
    let mut machine = Machine {
        values: SmallVec::new(),
        marks: SmallVec::new(),
        floor: 0,
        in_dict: false,
    };
    match first {
        Some(value) => machine.values.push(value),
        None => machine.step(op, &mut input, maker)?,
    }
    loop {
        let op = input.byte()?;
        if let Some(value) = scalar(op, &mut input, maker, machine.at_key())? {
            machine.values.push(value);
        } else if op != STOP {
            machine.step(op, &mut input, maker)?;
        } else if machine.marks.is_empty() && machine.values.len() == 1 && input.rest.is_empty() {
            return machine.values.pop();
        } else {
            return None;
        }
    }
}

/// Whether all operations up to the first `STOP` are of those that are read here.
fn is_known(rest: &[u8]) -> bool {
    fn pass(input: &mut Input<'_>) -> Option<()> {
        loop {
            match input.byte()? {
                STOP => return Some(()),
                BININT1 | BINPUT => drop(input.byte()?),
                BININT2 => drop(input.array::<2>()?),
                BININT => drop(input.array::<4>()?),
                BINFLOAT | FRAME => drop(input.array::<8>()?),
                LONG1 | SHORT_BINUNICODE | SHORT_BINBYTES => drop(input.sized::<1>()?),
                BINUNICODE | BINBYTES => drop(input.sized::<4>()?),
                BINUNICODE8 | BINBYTES8 => drop(input.sized::<8>()?),
                NONE | TRUE | FALSE | MARK | MEMOIZE => {}
                EMPTY_TUPLE | TUPLE1 | TUPLE2 | TUPLE3 | TUPLE => {}
                EMPTY_LIST | APPEND | APPENDS | EMPTY_DICT | SETITEM | SETITEMS => {}
                _ => return None,
            }
        }
    }
    pass(&mut Input { rest }).is_some()
}
