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

use std::ffi::c_int;
use std::{ptr, slice};

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyList, PyTuple};
use smallvec::SmallVec;

use self::keys::KEYS;
use crate::ipc::plain::read::{Maker, read};
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
/// Memo-free: numbers that the rest of the pickle gives to objects are not disturbed.
pub fn encode_bare(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    let begin = out.len();
    let mut encoder = Encoder {
        limit: begin.saturating_add(MOST),
        out,
        seen: Seen::default(),
    };
    // SAFETY: the caller has the GIL and a reference to the value.
    let written = unsafe { encoder.value(value.as_ptr(), 0) };
    if !written {
        out.truncate(begin);
    }
    written
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

/// Writes one value. Nothing that it calls runs Python code or allocates what the garbage collector
/// counts, so that the containers stay as they are and hold what is in them. The one exception is a
/// string that has no UTF-8, and after that no object is looked at again.
struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    /// The length that `out` may have.
    limit: usize,
    /// What must not be met again.
    seen: Seen,
}

impl Encoder<'_> {
    /// # Safety
    /// With the GIL, and `value` is an object; so for all of them.
    #[inline]
    unsafe fn value(&mut self, value: *mut ffi::PyObject, depth: usize) -> bool {
        // SAFETY: only the type is looked at, and each function gets what is of its type.
        unsafe {
            if ffi::PyLong_CheckExact(value) != 0 {
                self.int(value)
            } else if ffi::PyUnicode_CheckExact(value) != 0 {
                self.str(value)
            } else if ffi::PyFloat_CheckExact(value) != 0 {
                write::float(self.out, ffi::PyFloat_AsDouble(value));
                true
            } else if value == ffi::Py_None() {
                write::none(self.out);
                true
            } else if ffi::PyBool_Check(value) != 0 {
                write::bool(self.out, value == ffi::Py_True());
                true
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

    #[inline]
    unsafe fn int(&mut self, value: *mut ffi::PyObject) -> bool {
        let mut overflow: c_int = 0;
        // SAFETY: an exact int, for which this cannot fail.
        let number = unsafe { ffi::PyLong_AsLongLongAndOverflow(value, &mut overflow) };
        if overflow == 0 {
            write::int(self.out, number);
            return true;
        }
        // SAFETY: as above.
        unsafe { self.long(value) }
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
        // SAFETY: an exact str. Our reference keeps it while the error of a surrogate is made. The
        // text is the object's own, and is copied before we give the reference back.
        unsafe {
            ffi::Py_INCREF(value);
            let text = ffi::PyUnicode_AsUTF8AndSize(value, &mut len);
            let written = if text.is_null() {
                ffi::PyErr_Clear();
                false
            } else if self.may_write(value, len as usize) {
                write::str(self.out, slice::from_raw_parts(text.cast(), len as usize));
                true
            } else {
                false
            };
            ffi::Py_DECREF(value);
            written
        }
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

/// Makes Python objects. Where a collection of garbage runs other code meanwhile, this finds no
/// object with holes in it: tuples and lists are filled at once when all their items are there.
struct Objects<'py> {
    py: Python<'py>,
}

impl<'py> Objects<'py> {
    /// # Safety
    /// `object` is null or a reference to give away.
    unsafe fn own(&self, object: *mut ffi::PyObject) -> Option<Bound<'py, PyAny>> {
        // SAFETY: the caller's promise.
        unsafe { Bound::from_owned_ptr_or_opt(self.py, object) }
    }
}

impl<'py> Maker for Objects<'py> {
    type Value = Bound<'py, PyAny>;

    fn none(&mut self) -> Self::Value {
        self.py.None().into_bound(self.py)
    }

    fn bool(&mut self, value: bool) -> Self::Value {
        PyBool::new(self.py, value).to_owned().into_any()
    }

    fn int(&mut self, value: i64) -> Option<Self::Value> {
        // SAFETY: with the GIL; a new reference.
        unsafe { self.own(ffi::PyLong_FromLongLong(value)) }
    }

    fn long(&mut self, bytes: &[u8]) -> Option<Self::Value> {
        let (low, high) = bytes.as_chunks::<8>();
        let mut high = high;
        let mut low = low;
        if high.is_empty() {
            let (last, rest) = low.split_last()?;
            (high, low) = (last, rest);
        }
        let negative = *high.last()? >= 0x80;
        let mut first = if negative { [0xff; 8] } else { [0; 8] };
        first[..high.len()].copy_from_slice(high);
        let mut value = self.int(i64::from_le_bytes(first))?;
        for limb in low.iter().rev() {
            let limb = u64::from_le_bytes(*limb);
            value = value.lshift(64).ok()?.bitor(limb).ok()?;
        }
        Some(value)
    }

    fn float(&mut self, value: f64) -> Option<Self::Value> {
        // SAFETY: with the GIL; a new reference.
        unsafe { self.own(ffi::PyFloat_FromDouble(value)) }
    }

    fn str(&mut self, text: &[u8]) -> Option<Self::Value> {
        let (start, len) = (text.as_ptr().cast(), text.len() as ffi::Py_ssize_t);
        // SAFETY: with the GIL; a new reference.
        unsafe {
            self.own(ffi::PyUnicode_DecodeUTF8(
                start,
                len,
                c"surrogatepass".as_ptr(),
            ))
        }
    }

    fn key(&mut self, text: &[u8]) -> Option<Self::Value> {
        KEYS.get(self.py, text, |text| self.str(text))
    }

    fn bytes(&mut self, bytes: &[u8]) -> Option<Self::Value> {
        let (start, len) = (bytes.as_ptr().cast(), bytes.len() as ffi::Py_ssize_t);
        // SAFETY: with the GIL; a new reference.
        unsafe { self.own(ffi::PyBytes_FromStringAndSize(start, len)) }
    }

    fn tuple(&mut self, items: impl ExactSizeIterator<Item = Self::Value>) -> Option<Self::Value> {
        // SAFETY: with the GIL; a new reference.
        let tuple = unsafe { self.own(ffi::PyTuple_New(items.len() as ffi::Py_ssize_t))? };
        for (i, item) in (0..).zip(items) {
            // SAFETY: a new tuple of as many items, which gets our reference to each.
            unsafe { ffi::PyTuple_SetItem(tuple.as_ptr(), i, item.into_ptr()) };
        }
        Some(tuple)
    }

    fn list(&mut self, items: impl ExactSizeIterator<Item = Self::Value>) -> Option<Self::Value> {
        // SAFETY: with the GIL; a new reference.
        let list = unsafe { self.own(ffi::PyList_New(items.len() as ffi::Py_ssize_t))? };
        for (i, item) in (0..).zip(items) {
            // SAFETY: a new list of as many items, which gets our reference to each.
            unsafe { ffi::PyList_SetItem(list.as_ptr(), i, item.into_ptr()) };
        }
        Some(list)
    }

    fn dict(&mut self, items: impl ExactSizeIterator<Item = Self::Value>) -> Option<Self::Value> {
        // SAFETY: with the GIL; a new reference.
        let dict = unsafe { self.own(ffi::PyDict_New())? };
        self.update(dict, items)
    }

    fn extend(
        &mut self,
        list: Self::Value,
        items: impl ExactSizeIterator<Item = Self::Value>,
    ) -> Option<Self::Value> {
        let list = list.cast_into_exact::<PyList>().ok()?;
        for item in items {
            list.append(item).ok()?;
        }
        Some(list.into_any())
    }

    fn update(
        &mut self,
        dict: Self::Value,
        mut items: impl ExactSizeIterator<Item = Self::Value>,
    ) -> Option<Self::Value> {
        // SAFETY: with the GIL, any object.
        if unsafe { ffi::PyDict_CheckExact(dict.as_ptr()) } == 0 {
            return None;
        }
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            if !is_key(&key, 0) {
                return None;
            }
            // SAFETY: an exact dict, and two objects, of which it gets references of its own.
            if unsafe { ffi::PyDict_SetItem(dict.as_ptr(), key.as_ptr(), value.as_ptr()) } != 0 {
                return None;
            }
        }
        Some(dict)
    }
}

/// Whether a dict can have this key. Tuples that are nested without end are found before their hash
/// overflows the stack.
fn is_key(key: &Bound<'_, PyAny>, depth: usize) -> bool {
    match key.cast_exact::<PyTuple>() {
        Ok(tuple) => depth < DEEPEST && tuple.iter().all(|item| is_key(&item, depth + 1)),
        Err(_) => !(key.is_exact_instance_of::<PyList>() || key.is_exact_instance_of::<PyDict>()),
    }
}

/// plain_dumps(obj) -> the pickle of a plain value, None if it is not plain.
#[pyfunction]
#[pyo3(signature = (obj, /))]
fn plain_dumps<'py>(obj: &Bound<'py, PyAny>) -> Option<Bound<'py, PyBytes>> {
    let mut out = Vec::new();
    encode(obj, &mut out).then(|| PyBytes::new(obj.py(), &out))
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
