//! `mounts[].options`, one on each line of the input.
#![no_main]

use berth::findings::Findings;
use berth::mounts::{MAX_VALUE, known, parse};
use berth::sys::mounts::{MountAttr, attr};
use berth_fuzz::{findings_are_told, touch_nothing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    touch_nothing();
    let text = String::from_utf8_lossy(text);
    let mut options: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let mut findings = Findings::default();
    let parsed = parse(&options, "mounts[0]", &mut findings);
    findings_are_told(&findings);
    for finding in findings.problems.iter().chain(&findings.warnings) {
        assert!(finding.field.starts_with("mounts[0].options"), "{finding:?}");
    }
    for (key, value) in &parsed.data {
        assert!(!key.is_empty(), "data without a name");
        // the layers of an overlay are handed over one by one where they are longer
        let parted = key.as_c_str() == c"lowerdir";
        assert!(key.count_bytes() <= MAX_VALUE);
        assert!(parted || value.as_ref().is_none_or(|value| value.count_bytes() <= MAX_VALUE));
        let is_word = value.is_none() && !text.contains(',');
        assert!(!is_word || !known().contains(&key.to_str().unwrap_or_default()), "{key:?} is no data");
    }
    assert!(!parsed.rbind || parsed.bind);
    assert!(!parsed.bind || parsed.data.is_empty() && parsed.superblock.is_empty());
    // the access time mode is set and cleared by the same call; nothing else is
    let both = parsed.attributes.set & parsed.attributes.clear;
    assert_eq!(both & !attr::ATIME, 0, "set and cleared");

    // said twice is said once, but for the changes of propagation, which are steps, for data, and for access times: `atime` says
    // something only after another word about them
    options.extend(options.clone());
    let twice = parse(&options, "mounts[0]", &mut Findings::default());
    let said = |attributes: &MountAttr| [attributes.set & !attr::ATIME, attributes.clear & !attr::ATIME];
    assert_eq!(said(&twice.attributes), said(&parsed.attributes), "{options:?}");
    assert_eq!((twice.bind, twice.rbind, twice.remount), (parsed.bind, parsed.rbind, parsed.remount));
    assert_eq!(
        (twice.superblock.len(), twice.id_map, twice.copy_up),
        (parsed.superblock.len(), parsed.id_map, parsed.copy_up)
    );
});
