//! Which module uses which: the `use` lines of `src/` have no cycles, and the lower layers know nothing of the upper ones.

#![allow(clippy::unwrap_used, clippy::string_slice)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The one pair that leads back to itself: a status is derived from the gate, whose socket is in the state directory.
const CYCLES: [(&str, &str); 1] = [("gate", "state")];

type Arrows = BTreeMap<String, BTreeSet<String>>;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// What stands behind each `crate::`: a name, or the names of a list.
fn used(text: &str) -> BTreeSet<String> {
    let shipped = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: String = shipped.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let mut names = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let word = |text: &str| -> String {
            text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        };
        match rest.strip_prefix('{') {
            Some(list) => {
                let mut depth = 0_usize;
                let mut start = true;
                for (at, c) in list.char_indices() {
                    if start && depth == 0 && !c.is_whitespace() {
                        names.insert(word(&list[at..]));
                    }
                    start = c == ',' || start && c.is_whitespace();
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        _ => {}
                    }
                }
            }
            None => drop(names.insert(word(rest))),
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn arrows() -> Arrows {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&source, &mut files);
    let mut arrows = Arrows::new();
    for file in files {
        let below = file.strip_prefix(&source).unwrap();
        let module = below.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if !["lib", "main"].contains(&module.as_str()) {
            arrows.entry(module).or_default().extend(used(&fs::read_to_string(file).unwrap()));
        }
    }
    for (module, uses) in &mut arrows {
        uses.remove(module);
    }
    arrows
}

fn reached(arrows: &Arrows, from: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&String> = arrows.get(from).into_iter().flatten().collect();
    while let Some(module) = next.pop() {
        if found.insert(module.clone()) {
            next.extend(arrows.get(module).into_iter().flatten());
        }
    }
    found
}

#[test]
fn lists_and_single_names_are_read() {
    let text = "use crate::{a, b::{self, C}, d};\nuse crate::e::F; // crate::no\nfn g() { crate::h::i() }\n\
                #[cfg(test)]\nmod tests {\n    use crate::no;\n}\n";
    let expected = ["a", "b", "d", "e", "h"].map(str::to_owned);
    assert_eq!(used(text), BTreeSet::from(expected));
}

#[test]
fn every_name_is_a_module() {
    let arrows = arrows();
    for (module, uses) in &arrows {
        for used in uses {
            assert!(arrows.contains_key(used), "{module} uses {used}");
        }
    }
}

#[test]
fn no_module_leads_back_to_itself() {
    let mut arrows = arrows();
    for (from, to) in CYCLES {
        assert!(arrows.get_mut(from).unwrap().remove(to), "{from} no longer uses {to}: take it off the list");
    }
    for module in arrows.keys() {
        let reached = reached(&arrows, module);
        assert!(!reached.contains(module), "{module} leads back to itself by way of {reached:?}");
    }
}

#[test]
fn the_lower_layers_do_not_know_the_upper_ones() {
    let arrows = arrows();
    for module in ["sys", "error", "findings"] {
        assert_eq!(arrows.get(module), Some(&BTreeSet::new()), "{module}");
    }
    for (module, unknown) in [
        ("plan", ["state", "process", "init", "creation", "container", "channel"].as_slice()),
        ("init", &["process", "creation", "container", "exec", "config"]),
        ("process", &["creation", "container", "exec", "config"]),
        ("state", &["process", "init", "creation", "container", "config"]),
    ] {
        let reached = reached(&arrows, module);
        for upper in unknown {
            assert!(!reached.contains(*upper), "{module} reaches {upper}");
        }
    }
}
