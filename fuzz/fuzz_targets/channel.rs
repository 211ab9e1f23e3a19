//! The protocol between the runtime and init, as it is read on both sides and by the start gate: the first byte chooses.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use berth::channel::{Failure, FromInit, FromRuntime, FromStarter, decode, encode};
use berth::error::hinted;
use berth_fuzz::touch_nothing;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Counts what is allocated, so that a short message cannot ask for much memory.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls go to the system's allocator as they come.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|input: &[u8]| {
    touch_nothing();
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 4 {
        0 => reads_again::<FromInit>(bytes),
        1 => reads_again::<FromRuntime>(bytes),
        2 => reads_again::<FromStarter>(bytes),
        _ => failure_fits(&String::from_utf8_lossy(bytes)),
    }
});

fn reads_again<M: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) {
    let before = ALLOCATED.load(Relaxed);
    let decoded = decode::<M>(bytes);
    let allocated = ALLOCATED.load(Relaxed) - before;
    // strings grow by doubling; an error has its backtrace's place
    assert!(allocated <= 16 * bytes.len() + 4096, "{allocated} bytes for a message of {}", bytes.len());
    let Ok(message) = decoded else { return };
    // what is longer than a message is never sent
    let Ok(sent) = encode(&message) else { return };
    let again = decode::<M>(&sent).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(format!("{again:?}"), format!("{message:?}"));
}

/// However long an error is, it arrives.
fn failure_fits(text: &str) {
    let long = text.repeat(1 + 40_000 / text.len().max(1));
    let failure = Failure::from(&hinted(long.clone(), long));
    let sent = encode(&FromInit::Failed(failure.clone())).unwrap_or_else(|error| panic!("{error:#}"));
    let Ok(FromInit::Failed(arrived)) = decode(&sent) else { panic!("not a failure") };
    assert_eq!((arrived.text, arrived.hint), (failure.text, failure.hint));
}
