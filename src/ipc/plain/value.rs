//! Plain values without Python: for tests and fuzzing.

use super::read::Maker;
use super::write;

/// What is read, without Python.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Long(Vec<u8>),
    /// Its bits: not a number is not equal to itself.
    Float(u64),
    Str(Vec<u8>),
    Bytes(Vec<u8>),
    Tuple(Vec<Value>),
    List(Vec<Value>),
    /// Keys and values in turn.
    Dict(Vec<Value>),
}

/// Counts the strings that it is asked for as keys.
#[derive(Default)]
pub struct Values {
    pub keys: usize,
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
        let (low, high) = bytes.split_first_chunk().expect("more than 8 bytes");
        let int = i64::from_le_bytes(*low);
        let sign = if int < 0 { 0xff } else { 0 };
        // an int, as any other, if what is above only repeats its sign
        if high.iter().all(|byte| *byte == sign) {
            return Some(Value::Int(int));
        }
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

/// Appends a value to `out`.
pub fn put(value: &Value, out: &mut Vec<u8>) {
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
