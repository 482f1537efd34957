//! What is written is read, and nothing that is read does harm.

use super::read::{DEEPEST, read};
use super::value::{Value, Values, put};
use super::*;

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
    let ops = b"N\x88\x89KMJ\x8aG\x8cX\x8dCB\x8e()\x85\x86\x87t]ae}su\x95\x94q.";
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
        b"\x80\x04\x95\x25\x00\x00\x00\x00\x00\x00\x00]\x94(K\x01\x8c\x01a\x94K\x02\x85\x94\
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
    assert_eq!(read_back(b"}q\x00K\x01Ns(K\x02Nu."), Some(dict));
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
        b"q\x00N.",
        b"\x80\x04\x95\x03\x00\x00\x00\x00\x00\x00\x00N.", // a frame of more than there is
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
