//! Writing plain values: each function appends to `out`.

use super::*;

/// Before the value of a whole pickle.
#[inline]
pub fn begin(out: &mut Vec<u8>) {
    out.extend_from_slice(&[PROTO, WRITTEN]);
}

/// After it.
#[inline]
pub fn end(out: &mut Vec<u8>) {
    out.push(STOP);
}

#[inline]
pub fn none(out: &mut Vec<u8>) {
    out.push(NONE);
}

#[inline]
pub fn bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { TRUE } else { FALSE });
}

#[inline]
pub fn int(out: &mut Vec<u8>, value: i64) {
    if let Ok(byte) = u8::try_from(value) {
        out.extend_from_slice(&[BININT1, byte]);
    } else if let Ok(short) = u16::try_from(value) {
        let [a, b] = short.to_le_bytes();
        out.extend_from_slice(&[BININT2, a, b]);
    } else if let Ok(int) = i32::try_from(value) {
        let [a, b, c, d] = int.to_le_bytes();
        out.extend_from_slice(&[BININT, a, b, c, d]);
    } else {
        long(out, &value.to_le_bytes());
    }
}

/// An integer as little-endian two's complement; false, and nothing written, if it is too long.
pub fn long(out: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let mut len = bytes.len();
    // a last byte that only repeats the sign says nothing
    while len > 1 {
        let repeated = if bytes[len - 2] < 0x80 { 0 } else { 0xff };
        if bytes[len - 1] != repeated {
            break;
        }
        len -= 1;
    }
    let Ok(short) = u8::try_from(len) else {
        return false;
    };
    out.extend_from_slice(&[LONG1, short]);
    out.extend_from_slice(&bytes[..len]);
    true
}

#[inline]
pub fn float(out: &mut Vec<u8>, value: f64) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    out.extend_from_slice(&[BINFLOAT, a, b, c, d, e, f, g, h]);
}

/// UTF-8 as Python means it, less than 4 GiB of it.
#[inline]
pub fn str(out: &mut Vec<u8>, text: &[u8]) {
    sized(out, SHORT_BINUNICODE, BINUNICODE, text);
}

/// Less than 4 GiB.
#[inline]
pub fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    sized(out, SHORT_BINBYTES, BINBYTES, bytes);
}

#[inline]
fn sized(out: &mut Vec<u8>, short: u8, long: u8, bytes: &[u8]) {
    if let Ok(len) = u8::try_from(bytes.len()) {
        out.extend_from_slice(&[short, len]);
    } else {
        debug_assert!(u32::try_from(bytes.len()).is_ok());
        let [a, b, c, d] = (bytes.len() as u32).to_le_bytes();
        out.extend_from_slice(&[long, a, b, c, d]);
    }
    out.extend_from_slice(bytes);
}

/// Before the items of a tuple of `len`.
#[inline]
pub fn begin_tuple(out: &mut Vec<u8>, len: usize) {
    if len > 3 {
        out.push(MARK);
    }
}

/// After the items of a tuple of `len`.
#[inline]
pub fn end_tuple(out: &mut Vec<u8>, len: usize) {
    out.push(match len {
        0 => EMPTY_TUPLE,
        1 => TUPLE1,
        2 => TUPLE2,
        3 => TUPLE3,
        _ => TUPLE,
    });
}

/// Before the items of a list of `len`.
#[inline]
pub fn begin_list(out: &mut Vec<u8>, len: usize) {
    begin_filled(out, EMPTY_LIST, len);
}

/// After the items of a list of `len`.
#[inline]
pub fn end_list(out: &mut Vec<u8>, len: usize) {
    if len > 0 {
        out.push(APPENDS);
    }
}

/// Before the keys and values of a dict of `len`.
#[inline]
pub fn begin_dict(out: &mut Vec<u8>, len: usize) {
    begin_filled(out, EMPTY_DICT, len);
}

/// After the keys and values of a dict of `len`.
#[inline]
pub fn end_dict(out: &mut Vec<u8>, len: usize) {
    if len > 0 {
        out.push(SETITEMS);
    }
}

#[inline]
fn begin_filled(out: &mut Vec<u8>, empty: u8, len: usize) {
    if len > 0 {
        out.extend_from_slice(&[empty, MARK]);
    } else {
        out.push(empty);
    }
}
