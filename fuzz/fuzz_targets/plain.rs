//! Any bytes as a pickle: what is read from them is written and read again as it was.
#![no_main]

use _core::ipc::plain::read::{DEEPEST, read};
use _core::ipc::plain::value::{Value, Values, put};
use _core::ipc::plain::write;
use libfuzzer_sys::fuzz_target;

fn depth(value: &Value) -> usize {
    match value {
        Value::Tuple(items) | Value::List(items) | Value::Dict(items) => {
            1 + items.iter().map(depth).max().unwrap_or(0)
        }
        _ => 0,
    }
}

fn written(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write::begin(&mut out);
    put(value, &mut out);
    write::end(&mut out);
    out
}

fuzz_target!(|data: &[u8]| {
    let Some(value) = read(data, &mut Values::default()) else {
        return;
    };
    let first = written(&value);
    // lists that were filled one by one may be nested deeper than marks can be
    if depth(&value) <= DEEPEST {
        let again = read(&first, &mut Values::default()).expect("what is written is read");
        // not compared with the value: an integer may have been longer than it needs to be
        assert_eq!(written(&again), first);
    }
});
