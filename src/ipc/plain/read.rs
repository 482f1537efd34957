//! Reading plain values: the machine that a pickle is a program for.
//!
//! Nothing recurses, and nothing is made room for before it is there.

use smallvec::SmallVec;

use super::*;

/// Marks that may be open at once.
const DEEPEST: usize = 128;

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
            // Somebody is to find the last value by this number. There has to be one.
            MEMOIZE => return (self.values.len() > self.floor).then_some(()),
            BINPUT => return input.byte().map(drop),
            LONG_BINPUT => return input.array::<4>().map(drop),
            FRAME => return input.array::<8>().map(drop),
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
                BININT | LONG_BINPUT => drop(input.array::<4>()?),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read, without Python.
    #[derive(Clone, Debug, PartialEq)]
    enum Value {
        None,
        Bool(bool),
        Int(i64),
        Long(Vec<u8>),
        Float(u64),
        Str(Vec<u8>),
        Bytes(Vec<u8>),
        Tuple(Vec<Value>),
        List(Vec<Value>),
        Dict(Vec<Value>),
    }

    /// Counts the strings that it is asked for as keys.
    #[derive(Default)]
    struct Values {
        keys: usize,
    }

    impl Maker for Values {
        type Value = Value;

        fn none(&mut self) -> Value {
            Value::None
        }

        fn bool(&mut self, value: bool) -> Value {
            Value::Bool(value)
        }

        fn int(&mut self, value: i64) -> Option<Value> {
            Some(Value::Int(value))
        }

        fn long(&mut self, bytes: &[u8]) -> Option<Value> {
            assert!(bytes.len() > 8);
            Some(Value::Long(bytes.to_vec()))
        }

        fn float(&mut self, value: f64) -> Option<Value> {
            Some(Value::Float(value.to_bits()))
        }

        fn str(&mut self, text: &[u8]) -> Option<Value> {
            Some(Value::Str(text.to_vec()))
        }

        fn key(&mut self, text: &[u8]) -> Option<Value> {
            self.keys += 1;
            self.str(text)
        }

        fn bytes(&mut self, bytes: &[u8]) -> Option<Value> {
            Some(Value::Bytes(bytes.to_vec()))
        }

        fn tuple(&mut self, items: impl ExactSizeIterator<Item = Value>) -> Option<Value> {
            Some(Value::Tuple(items.collect()))
        }

        fn list(&mut self, items: impl ExactSizeIterator<Item = Value>) -> Option<Value> {
            Some(Value::List(items.collect()))
        }

        fn dict(&mut self, items: impl ExactSizeIterator<Item = Value>) -> Option<Value> {
            assert!(items.len().is_multiple_of(2));
            Some(Value::Dict(items.collect()))
        }

        fn extend(
            &mut self,
            list: Value,
            items: impl ExactSizeIterator<Item = Value>,
        ) -> Option<Value> {
            let Value::List(mut all) = list else {
                return None;
            };
            all.extend(items);
            Some(Value::List(all))
        }

        fn update(
            &mut self,
            dict: Value,
            items: impl ExactSizeIterator<Item = Value>,
        ) -> Option<Value> {
            assert!(items.len().is_multiple_of(2));
            let Value::Dict(mut all) = dict else {
                return None;
            };
            all.extend(items);
            Some(Value::Dict(all))
        }
    }

    fn put(value: &Value, out: &mut Vec<u8>) {
        match value {
            Value::None => write::none(out),
            Value::Bool(value) => write::bool(out, *value),
            Value::Int(value) => write::int(out, *value),
            Value::Long(bytes) => assert!(write::long(out, bytes)),
            Value::Float(bits) => write::float(out, f64::from_bits(*bits)),
            Value::Str(text) => write::str(out, text),
            Value::Bytes(bytes) => write::bytes(out, bytes),
            Value::Tuple(items) => {
                write::begin_tuple(out, items.len());
                items.iter().for_each(|item| put(item, out));
                write::end_tuple(out, items.len());
            }
            Value::List(items) => {
                write::begin_list(out, items.len());
                items.iter().for_each(|item| put(item, out));
                write::end_list(out, items.len());
            }
            Value::Dict(items) => {
                write::begin_dict(out, items.len());
                items.iter().for_each(|item| put(item, out));
                write::end_dict(out, items.len());
            }
        }
    }

    fn written(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        write::begin(&mut out);
        put(value, &mut out);
        write::end(&mut out);
        out
    }

    fn read_back(bytes: &[u8]) -> Option<Value> {
        read(bytes, &mut Values::default())
    }

    /// xorshift64*: the same values every time.
    struct Dice(u64);

    impl Dice {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn roll(&mut self, sides: usize) -> usize {
            (self.next() >> 33) as usize % sides
        }

        fn bytes(&mut self) -> Vec<u8> {
            let longest = [4, 30, 300][self.roll(3)];
            (0..self.roll(longest)).map(|_| self.next() as u8).collect()
        }

        fn values(&mut self, number: usize, depth: usize) -> Vec<Value> {
            (0..number).map(|_| self.value(depth)).collect()
        }

        fn value(&mut self, depth: usize) -> Value {
            let number = self.roll(6);
            match self.roll(if depth == 0 { 6 } else { 9 }) {
                0 => Value::None,
                1 => Value::Bool(self.roll(2) == 0),
                2 => Value::Int(self.next() as i64 >> self.roll(64)),
                3 => Value::Float(self.next()),
                4 => Value::Str(self.bytes()),
                5 => Value::Bytes(self.bytes()),
                6 => Value::Tuple(self.values(number, depth - 1)),
                7 => Value::List(self.values(number, depth - 1)),
                _ => Value::Dict(self.values(2 * number, depth - 1)),
            }
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut dice = Dice(1);
        for _ in 0..5_000 {
            let value = dice.value(5);
            assert_eq!(read_back(&written(&value)), Some(value));
        }
    }

    #[test]
    fn damage_is_refused_or_read_as_something_else() {
        let mut dice = Dice(2);
        for _ in 0..300 {
            let whole = written(&dice.value(4));
            for end in 0..whole.len() {
                assert_eq!(read_back(&whole[..end]), None);
            }
            for at in 0..whole.len() {
                let mut damaged = whole.clone();
                damaged[at] = dice.next() as u8;
                let _ = read_back(&damaged);
            }
            let mut longer = whole;
            longer.push(STOP);
            assert_eq!(read_back(&longer), None);
        }
    }

    #[test]
    fn any_operations_in_any_order_do_no_harm() {
        let ops = b"N\x88\x89KMJ\x8aG\x8cX\x8dCB\x8e()\x85\x86\x87t]ae}su\x95\x94qr.";
        let mut dice = Dice(3);
        let mut values = 0;
        for _ in 0..200_000 {
            let len = dice.roll(24);
            let mut program: Vec<u8> = (0..len)
                .map(|_| {
                    if dice.roll(4) == 0 {
                        0
                    } else {
                        ops[dice.roll(ops.len())]
                    }
                })
                .collect();
            program.push(STOP);
            values += usize::from(read_back(&program).is_some());
        }
        assert!(values > 100, "{values} programs had a value");
    }

    #[test]
    fn ints_have_the_length_that_pickle_gives_them() {
        let len = |value| written(&Value::Int(value)).len() - 3;
        for (value, expected) in [
            (0, 2),
            (255, 2),
            (256, 3),
            (65_535, 3),
            (65_536, 5),
            (-1, 5),
            (i32::MAX.into(), 5),
            (i32::MIN.into(), 5),
            (i64::from(i32::MAX) + 1, 7),
            (i64::from(i32::MIN) - 1, 7),
            ((1 << 39) - 1, 7),
            (1 << 39, 8),
            (-1 << 39, 7),
            (i64::MAX, 10),
            (i64::MIN, 10),
        ] {
            assert_eq!(len(value), expected, "{value}");
            assert_eq!(
                read_back(&written(&Value::Int(value))),
                Some(Value::Int(value))
            );
        }
    }

    #[test]
    fn long_integers_end_where_more_says_nothing() {
        let mut out = Vec::new();
        assert!(write::long(
            &mut out,
            &[1, 2, 3, 4, 5, 6, 7, 8, 0x80, 0, 0, 0]
        ));
        assert_eq!(out, [LONG1, 10, 1, 2, 3, 4, 5, 6, 7, 8, 0x80, 0]);
        assert!(!write::long(&mut out, &[1; 256]));
        assert!(write::long(
            &mut out,
            &[[0xff; 8].as_slice(), &[0xff; 300]].concat()
        ));
        assert_eq!(&out[12..], [LONG1, 1, 0xff]);
        assert_eq!(read_back(b"\x8a\x00."), Some(Value::Int(0)));
        assert_eq!(read_back(b"\x8a\x02\x00\xff."), Some(Value::Int(-256)));
    }

    #[test]
    fn short_strings_at_the_place_of_a_key_are_keys() {
        let text = |text: &str| Value::Str(text.into());
        let row = Value::Dict(vec![
            text("a"),
            text("b"),
            text("c"),
            Value::List(vec![text("d")]),
        ]);
        let rows = Value::List(vec![row.clone(), text("e"), row]);
        let mut maker = Values::default();
        assert_eq!(read(&written(&rows), &mut maker), Some(rows));
        assert_eq!(maker.keys, 4);
    }

    #[test]
    fn what_the_c_pickler_writes_is_read() {
        // pickle.dumps([1, "a", (2,), {"k": [], b"": 0.5}], 4)
        let framed =
            b"\x80\x04\x95\x29\x00\x00\x00\x00\x00\x00\x00]\x94(K\x01\x8c\x01a\x94K\x02\x85\x94\
            }\x94(\x8c\x01k\x94]\x94C\x00\x94G\x3f\xe0\x00\x00\x00\x00\x00\x00ue.";
        let row = vec![
            Value::Str(b"k".to_vec()),
            Value::List(vec![]),
            Value::Bytes(vec![]),
            Value::Float(0.5_f64.to_bits()),
        ];
        let list = vec![
            Value::Int(1),
            Value::Str(b"a".to_vec()),
            Value::Tuple(vec![Value::Int(2)]),
            Value::Dict(row),
        ];
        assert_eq!(read_back(framed), Some(Value::List(list)));
        // one by one, with numbers of protocol 2
        let list = Value::List(vec![Value::Int(1), Value::Int(2), Value::Int(3)]);
        assert_eq!(read_back(b"\x80\x02]q\x00(K\x01K\x02eK\x03a."), Some(list));
        let dict = Value::Dict(vec![Value::Int(1), Value::None, Value::Int(2), Value::None]);
        assert_eq!(read_back(b"}r\x00\x00\x00\x00K\x01Ns(K\x02Nu."), Some(dict));
    }

    #[test]
    fn what_reaches_across_a_mark_is_refused() {
        for program in [
            b"K\x01(\x85.".as_slice(), // a tuple of what is before the mark
            b"K\x01](\x85.",
            b"](K\x01t.", // a list and a tuple
            b"](K\x01u.",
            b"}(K\x01K\x02e.",
            b"}(K\x01u.",     // a key without a value
            b"(K\x01K\x02.",  // a mark that stays open
            b"K\x01K\x02.",   // two values
            b"K\x01(K\x02e.", // more for a list that is none
            b"K\x01K\x02a.",
            b"K\x01K\x02K\x03s.",
            b"]K\x01a(e.h\x00.", // a second pickle
            b"K\x01h\x00.",      // what has a number
            b"\x80\x06N.",       // a protocol to come
            b"(\x94t.",          // a number for nothing
            b"t.",
            b"e.",
            b".",
            b"",
        ] {
            assert_eq!(read_back(program), None, "{program:?}");
        }
    }

    #[test]
    fn marks_are_bounded() {
        let nested = |depth| [b"(".repeat(depth), b"t".repeat(depth), b".".to_vec()].concat();
        assert!(read_back(&nested(DEEPEST)).is_some());
        assert!(read_back(&nested(DEEPEST + 1)).is_none());
    }

    #[test]
    fn a_claimed_length_makes_no_room() {
        assert_eq!(read_back(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff."), None);
        assert_eq!(read_back(b"B\xff\xff\xff\xff."), None);
    }
}
