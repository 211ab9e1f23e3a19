//! `state.json`: what another version, a full disk or a hand has left there.
#![no_main]

use berth::state::{State, Status};
use berth_fuzz::touch_nothing;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|text: &[u8]| {
    touch_nothing();
    let Ok(state) = State::parse(text) else { return };
    let saved = serde_json::to_vec(&state).unwrap();
    let again =
        State::parse(&saved).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&saved)));
    assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&state).unwrap());
    for status in [Status::Creating, Status::Created, Status::Running, Status::Paused, Status::Stopped] {
        let told: Value = serde_json::from_slice(&state.for_hooks(status)).unwrap();
        assert_eq!(told["id"], Value::from(state.id.as_str()));
        assert_eq!(told["status"], Value::from(status.name()));
    }
});
