//! What the reading of a pickle makes: Python objects.
#![allow(unsafe_code)] // strings, tuples and lists straight from the interpreter

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyList, PyString, PyTuple};

use super::DEEPEST;
use super::keys::KEYS;
use crate::ipc::plain::read::Maker;

/// Makes Python objects. Where a collection of garbage runs other code meanwhile, this finds no
/// object with holes in it: tuples and lists are filled at once when all their items are there.
pub struct Objects<'py> {
    pub py: Python<'py>,
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
        let (mut limbs, mut rest) = bytes.as_chunks::<8>();
        if rest.is_empty() {
            let (last, others) = limbs.split_last()?;
            (limbs, rest) = (others, last);
        }
        // the highest has the sign, and may be short
        let negative = *rest.last()? >= 0x80;
        let mut highest = if negative { [0xff; 8] } else { [0; 8] };
        highest[..rest.len()].copy_from_slice(rest);
        let highest = i64::from_le_bytes(highest);
        if let (0, [limb]) = (highest, limbs) {
            let limb = u64::from_le_bytes(*limb);
            // SAFETY: with the GIL; a new reference.
            return unsafe { self.own(ffi::PyLong_FromUnsignedLongLong(limb)) };
        }
        let mut value = self.int(highest)?;
        for limb in limbs.iter().rev() {
            value = value.lshift(64).ok()?;
            value = value.bitor(u64::from_le_bytes(*limb)).ok()?;
        }
        Some(value)
    }

    fn float(&mut self, value: f64) -> Option<Self::Value> {
        // SAFETY: with the GIL; a new reference.
        unsafe { self.own(ffi::PyFloat_FromDouble(value)) }
    }

    fn str(&mut self, text: &[u8]) -> Option<Self::Value> {
        let (start, len) = (text.as_ptr().cast(), text.len() as ffi::Py_ssize_t);
        let errors = c"surrogatepass".as_ptr();
        // SAFETY: with the GIL; a new reference.
        unsafe { self.own(ffi::PyUnicode_DecodeUTF8(start, len, errors)) }
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
            if !is_key(&key) {
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
#[inline]
fn is_key(key: &Bound<'_, PyAny>) -> bool {
    fn is_shallow(key: &Bound<'_, PyAny>, depth: usize) -> bool {
        let Ok(tuple) = key.cast_exact::<PyTuple>() else {
            return true;
        };
        depth < DEEPEST && tuple.iter().all(|item| is_shallow(&item, depth + 1))
    }
    key.is_exact_instance_of::<PyString>() || is_shallow(key, 0)
}
