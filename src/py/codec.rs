//! Plain values to pickles and back without the pickler.
//!
//! Plain are objects of exactly these types: `None`, `bool`, `int`, `float`, `str`, `bytes`, and
//! `tuple`, `list` and `dict` of plain values. No Python code runs when one is written or read, and
//! it takes nanoseconds. The bytes are a pickle: `pickle.loads` reads what is written here, and what
//! the pickler writes of such values is read here, as long as no object comes twice.
//!
//! What pickle would do better, or otherwise than here, is not plain:
//!
//! * a list or a dict that is met twice: it has to be one object again, and it may be a cycle;
//! * a `str`, `bytes` or `tuple` of more than [`SHORT`] bytes that is met twice: pickle writes it
//!   once. Short ones are written again, and read as equal objects where pickle makes one: nothing
//!   but `is` and `id` can tell, since there is no list or dict in what is met twice;
//! * a string with lone surrogates, an integer of 256 bytes or more, `bytes` of more than
//!   [`MOST_BYTES`], anything in more than [`DEEPEST`] containers, and a pickle of more than [`MOST`].
#![allow(unsafe_code)] // objects that others own are looked at, without counting a reference to each

mod keys;
mod objects;

use std::ffi::c_int;
use std::{ptr, slice};

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use smallvec::SmallVec;

use self::objects::Objects;
use crate::ipc::plain::read::read;
use crate::ipc::plain::seen::Seen;
use crate::ipc::plain::write;

/// Bytes that an object may take each time that it is met.
const SHORT: usize = 64;
/// Longer `bytes` are not plain: there are better ways to send them.
const MOST_BYTES: usize = 64 << 10;
/// The longest pickle of a value.
const MOST: usize = 16 << 20;
/// Containers that a value may be in.
const DEEPEST: usize = 32;
/// Bytes of the longest int.
const LONGEST_INT: usize = 255;

/// Appends a complete pickle of `value` to `out`; false (and `out` unchanged) when it is not plain:
/// the caller uses the C pickler.
pub fn encode(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    let begin = out.len();
    write::begin(out);
    if encode_bare(value, out) {
        write::end(out);
        true
    } else {
        out.truncate(begin);
        false
    }
}

/// As [`encode`], but without the first and last bytes of a pickle: it may be part of another.
/// Memo-free: numbers that the rest of the pickle gives to objects are not disturbed. What may share
/// a list or a dict with the rest has to be encoded together with it ([`encode_tuple`]).
#[inline]
pub fn encode_bare(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    // SAFETY: the caller has the GIL and a reference to the value.
    unsafe { number(value.as_ptr(), out) || encode_larger(value.as_ptr(), out) }
}

/// As [`encode_bare`], for a tuple of these values. One after the other they would not be plain
/// together: a list may be in two of them.
pub fn encode_tuple(values: &[&Bound<'_, PyAny>], out: &mut Vec<u8>) -> bool {
    encode_with(out, |encoder| {
        write::begin_tuple(encoder.out, values.len());
        for value in values {
            // SAFETY: the caller has the GIL and a reference to the value.
            if !unsafe { encoder.value(value.as_ptr(), 1) } || encoder.is_full() {
                return false;
            }
        }
        write::end_tuple(encoder.out, values.len());
        true
    })
}

/// # Safety
/// With the GIL, and `value` is an object.
unsafe fn encode_larger(value: *mut ffi::PyObject, out: &mut Vec<u8>) -> bool {
    // SAFETY: the caller's promise.
    encode_with(out, |encoder| unsafe { encoder.value(value, 0) })
}

#[inline]
fn encode_with(out: &mut Vec<u8>, write: impl FnOnce(&mut Encoder<'_>) -> bool) -> bool {
    let begin = out.len();
    let limit = begin.saturating_add(MOST);
    let mut seen = Seen::default();
    let seen = &mut seen;
    let written = write(&mut Encoder { out, limit, seen });
    if !written {
        out.truncate(begin);
    }
    written
}

/// Writes an int of up to 64 bits, a float, `None` or a bool; false for anything else.
///
/// # Safety
/// With the GIL, and `value` is an object.
#[inline(always)]
unsafe fn number(value: *mut ffi::PyObject, out: &mut Vec<u8>) -> bool {
    // SAFETY: only the type is looked at, and each function gets what is of its type: it cannot fail.
    unsafe {
        if ffi::PyLong_CheckExact(value) != 0 {
            let mut overflow: c_int = 0;
            let int = ffi::PyLong_AsLongLongAndOverflow(value, &mut overflow);
            if overflow != 0 {
                return false;
            }
            write::int(out, int);
        } else if ffi::PyFloat_CheckExact(value) != 0 {
            write::float(out, ffi::PyFloat_AsDouble(value));
        } else if value == ffi::Py_None() {
            write::none(out);
        } else if value == ffi::Py_True() {
            write::bool(out, true);
        } else if value == ffi::Py_False() {
            write::bool(out, false);
        } else {
            return false;
        }
    }
    true
}

/// The value of a pickle, None when it uses anything outside the subset (or is malformed): the
/// caller uses the C unpickler.
pub fn decode<'py>(py: Python<'py>, bytes: &[u8]) -> Option<Bound<'py, PyAny>> {
    let value = read(bytes, &mut Objects { py });
    if value.is_none() {
        // SAFETY: we have the GIL. What went wrong is for the C unpickler to say.
        unsafe { ffi::PyErr_Clear() };
    }
    value
}

/// Writes one value. While it does, no Python code runs and nothing else has the GIL, so containers
/// stay as they are and keep what is in them: nothing is called that could run the garbage collector.
/// The one exception is a string without UTF-8, and after its error no object is looked at again.
struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    /// The length that `out` may have.
    limit: usize,
    /// What must not be met again.
    seen: &'a mut Seen,
}

impl Encoder<'_> {
    /// # Safety
    /// With the GIL, and `value` is an object; so for all of them.
    #[inline]
    unsafe fn value(&mut self, value: *mut ffi::PyObject, depth: usize) -> bool {
        // SAFETY: only the type is looked at, and each function gets what is of its type.
        unsafe {
            if ffi::PyUnicode_CheckExact(value) != 0 {
                self.str(value)
            } else if number(value, self.out) {
                true
            } else if ffi::PyLong_CheckExact(value) != 0 {
                self.long(value)
            } else if ffi::PyBytes_CheckExact(value) != 0 {
                self.bytes(value)
            } else if depth == DEEPEST {
                false
            } else if ffi::PyTuple_CheckExact(value) != 0 {
                self.tuple(value, depth + 1)
            } else if ffi::PyDict_CheckExact(value) != 0 {
                self.dict(value, depth + 1)
            } else if ffi::PyList_CheckExact(value) != 0 {
                self.list(value, depth + 1)
            } else {
                false
            }
        }
    }

    /// An int of more than 64 bits: from the low end, 64 of them at a time.
    #[cold]
    unsafe fn long(&mut self, value: *mut ffi::PyObject) -> bool {
        // SAFETY: we have the GIL, and the object lives.
        let value = unsafe { Bound::from_borrowed_ptr(Python::assume_attached(), value) };
        long_bytes(&value).is_some_and(|bytes| write::long(self.out, &bytes))
    }

    #[inline]
    unsafe fn str(&mut self, value: *mut ffi::PyObject) -> bool {
        let mut len = 0;
        // SAFETY: an exact str, whose text is its own and copied at once. The error of a surrogate is
        // the one thing made here that could run the collector, and then only in 3.11 (later ones do
        // not collect on allocation): the error holds the string by then.
        unsafe {
            let text = ffi::PyUnicode_AsUTF8AndSize(value, &mut len);
            if text.is_null() {
                ffi::PyErr_Clear();
                return false;
            }
            if !self.may_write(value, len as usize) {
                return false;
            }
            write::str(self.out, slice::from_raw_parts(text.cast(), len as usize));
        }
        true
    }

    #[inline]
    unsafe fn bytes(&mut self, value: *mut ffi::PyObject) -> bool {
        // SAFETY: an exact bytes, for which these cannot fail, and which does not change.
        let bytes = unsafe {
            let len = ffi::PyBytes_Size(value) as usize;
            slice::from_raw_parts(ffi::PyBytes_AsString(value).cast::<u8>(), len)
        };
        if bytes.len() > MOST_BYTES || !self.may_write(value, bytes.len()) {
            return false;
        }
        write::bytes(self.out, bytes);
        true
    }

    /// Whether there is room for `len` bytes, and they are few or not met before.
    #[inline]
    fn may_write(&mut self, value: *mut ffi::PyObject, len: usize) -> bool {
        len <= SHORT || (len <= self.limit.saturating_sub(self.out.len()) && self.is_new(value))
    }

    #[inline]
    fn is_new(&mut self, value: *mut ffi::PyObject) -> bool {
        self.seen.insert(value.addr())
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.out.len() > self.limit
    }

    unsafe fn tuple(&mut self, tuple: *mut ffi::PyObject, depth: usize) -> bool {
        let begin = self.out.len();
        // SAFETY: an exact tuple, which has as many items as it says, and holds them.
        unsafe {
            let len = ffi::PyTuple_Size(tuple);
            write::begin_tuple(self.out, len as usize);
            for i in 0..len {
                if !self.value(ffi::PyTuple_GetItem(tuple, i), depth) || self.is_full() {
                    return false;
                }
            }
            write::end_tuple(self.out, len as usize);
        }
        self.out.len() - begin <= SHORT || self.is_new(tuple)
    }

    unsafe fn list(&mut self, list: *mut ffi::PyObject, depth: usize) -> bool {
        if !self.is_new(list) {
            return false;
        }
        // SAFETY: an exact list, which nobody changes meanwhile.
        unsafe {
            let len = ffi::PyList_Size(list);
            write::begin_list(self.out, len as usize);
            for i in 0..len {
                if !self.value(ffi::PyList_GetItem(list, i), depth) || self.is_full() {
                    return false;
                }
            }
            write::end_list(self.out, len as usize);
        }
        true
    }

    unsafe fn dict(&mut self, dict: *mut ffi::PyObject, depth: usize) -> bool {
        if !self.is_new(dict) {
            return false;
        }
        let (mut at, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: an exact dict, which nobody changes meanwhile.
        unsafe {
            let len = ffi::PyDict_Size(dict);
            write::begin_dict(self.out, len as usize);
            while ffi::PyDict_Next(dict, &mut at, &mut key, &mut value) != 0 {
                if !self.value(key, depth) || !self.value(value, depth) || self.is_full() {
                    return false;
                }
            }
            write::end_dict(self.out, len as usize);
        }
        true
    }
}

/// An exact int as little-endian two's complement; `None` if it is longer than we write. Makes ints
/// only, which are nothing to the garbage collector.
fn long_bytes(value: &Bound<'_, PyAny>) -> Option<SmallVec<[u8; 32]>> {
    let mut bytes = SmallVec::new();
    let mut rest = value.clone();
    loop {
        // SAFETY: an exact int, for which this cannot fail.
        let low = unsafe { ffi::PyLong_AsUnsignedLongLongMask(rest.as_ptr()) };
        bytes.extend_from_slice(&low.to_le_bytes());
        rest = rest.rshift(64).ok()?;
        let mut overflow: c_int = 0;
        // SAFETY: as above.
        let last = unsafe { ffi::PyLong_AsLongLongAndOverflow(rest.as_ptr(), &mut overflow) };
        if overflow == 0 {
            bytes.extend_from_slice(&last.to_le_bytes());
            return Some(bytes);
        }
        // Millions of digits are not to be shifted again and again.
        if bytes.len() == 8 && !fits(value)? {
            return None;
        }
    }
}

/// Whether an exact int fits the longest form that we write.
fn fits(value: &Bound<'_, PyAny>) -> Option<bool> {
    let rest = value.rshift(8 * LONGEST_INT - 1).ok()?;
    Some(
        rest.extract()
            .is_ok_and(|sign: i64| sign == 0 || sign == -1),
    )
}

/// plain_dumps(obj, *more) -> the pickle of a plain value, or of a tuple of several; None if it is
/// not plain.
#[pyfunction]
#[pyo3(signature = (obj, /, *more))]
fn plain_dumps<'py>(
    obj: &Bound<'py, PyAny>,
    more: &Bound<'py, PyTuple>,
) -> Option<Bound<'py, PyBytes>> {
    let mut out = Vec::new();
    if more.is_empty() {
        return encode(obj, &mut out).then(|| PyBytes::new(obj.py(), &out));
    }
    let more: Vec<_> = more.iter().collect();
    let all: Vec<_> = std::iter::once(obj).chain(&more).collect();
    write::begin(&mut out);
    if !encode_tuple(&all, &mut out) {
        return None;
    }
    write::end(&mut out);
    Some(PyBytes::new(obj.py(), &out))
}

/// plain_loads(data) -> the plain value of a pickle.
#[pyfunction]
#[pyo3(signature = (data, /))]
fn plain_loads<'py>(py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    decode(py, data).ok_or_else(|| PyValueError::new_err("not the pickle of a plain value"))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(plain_dumps, module)?)?;
    module.add_function(wrap_pyfunction!(plain_loads, module)?)
}
