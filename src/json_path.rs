//! The path of the value at which the decoder of a JSON text has given up, for messages that name the field.
//!
//! serde_json tells a line and a column. A deserializer that keeps the path on its way is compiled once more for each type of
//! the runtime-spec, which was a tenth of berth's binary.

use std::fmt;

use serde_json::Value;

/// From the top of a text to a value in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// `process.args[0]`; a dot for the top itself.
impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(".");
        }
        for (number, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if number == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

impl JsonPath {
    /// Of an error in a text that is well-formed up to it.
    pub fn of(error: &serde_json::Error, text: &[u8]) -> Self {
        let lines = text.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
        let mut end = lines.map(<[u8]>::len).sum::<usize>() + error.column();
        if error.is_syntax() {
            // in a text without any: what would be the value's first byte is another one, and counted
            end = end.saturating_sub(1);
        }
        let read = text.get(..end).unwrap_or(text);
        let mut walk = Walk::default();
        walk.over(read);
        let message = error.to_string();
        let says = |starts: &[&str]| starts.iter().any(|start| message.starts_with(start));
        match walk.last {
            // what a type refuses after it was read is told when the reader is behind it: at the container's end, or at the next element
            Last::End(container) if !says(&["missing field", "invalid length"]) => {
                walk.around.push(container)
            }
            Last::Comma if !error.is_syntax() && !says(&["invalid type"]) => {
                walk.step(|index| index.saturating_sub(1));
            }
            // an object in the place of a word
            Last::Name if says(&["unknown variant"]) => drop(walk.around.pop()),
            _ => {}
        }
        Self(walk.around.into_iter().filter_map(|container| container.at).collect())
    }

    /// Takes the value out, so that the rest can be looked at. False at the top, and where there is none.
    pub fn remove_from(&self, value: &mut Value) -> bool {
        let Some((last, before)) = self.0.split_last() else { return false };
        let mut at = value;
        for step in before {
            let next = match step {
                Step::Index(index) => at.get_mut(*index),
                Step::Key(key) => at.get_mut(key.as_str()),
            };
            let Some(next) = next else { return false };
            at = next;
        }
        match (last, at) {
            (Step::Index(index), Value::Array(elements)) if *index < elements.len() => {
                elements.remove(*index);
                true
            }
            (Step::Key(key), Value::Object(members)) => members.remove(key.as_str()).is_some(),
            _ => false,
        }
    }
}

/// An object or an array that is being read.
#[derive(Debug)]
struct Container {
    /// The value in it.
    at: Option<Step>,
    /// The next string is a member's name.
    names_next: bool,
}

/// What was read last.
#[derive(Debug, Default)]
enum Last {
    #[default]
    Other,
    Comma,
    /// The name of a member.
    Name,
    /// The end of an object or an array.
    End(Container),
}

/// Where a reader is.
#[derive(Debug, Default)]
struct Walk {
    around: Vec<Container>,
    last: Last,
}

impl Walk {
    fn over(&mut self, text: &[u8]) {
        let mut rest = text;
        while let Some((byte, after)) = rest.split_first() {
            rest = after;
            self.last = match byte {
                byte if byte.is_ascii_whitespace() => continue,
                b'{' => self.enter(Container { at: None, names_next: true }),
                b'[' => self.enter(Container { at: Some(Step::Index(0)), names_next: false }),
                b'}' | b']' => self.around.pop().map_or(Last::Other, Last::End),
                b',' => {
                    self.step(|index| index + 1);
                    Last::Comma
                }
                b'"' => {
                    let (last, behind) = self.string(after);
                    rest = behind;
                    last
                }
                _ => Last::Other,
            };
        }
    }

    fn enter(&mut self, container: Container) -> Last {
        self.around.push(container);
        Last::Other
    }

    /// To another element, or to the name of the next member.
    fn step(&mut self, other: impl Fn(usize) -> usize) {
        match self.around.last_mut() {
            Some(Container { at: Some(Step::Index(index)), .. }) => *index = other(*index),
            Some(container) => container.names_next = true,
            None => {}
        }
    }

    /// Reads a string without its first quote. The answer is what comes after it.
    fn string<'a>(&mut self, text: &'a [u8]) -> (Last, &'a [u8]) {
        let mut escaped = false;
        let end = text.iter().position(|byte| {
            let ends = *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            ends
        });
        let (inside, after) = text.split_at(end.unwrap_or(text.len()));
        let behind = after.get(1..).unwrap_or_default();
        match self.around.last_mut().filter(|container| container.names_next) {
            Some(container) => {
                container.names_next = false;
                container.at = serde_json::from_slice(&[b"\"", inside, b"\""].concat()).ok().map(Step::Key);
                (Last::Name, behind)
            }
            None => (Last::Other, behind),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    /// A number that a text holds.
    #[derive(Debug)]
    struct Number;

    impl<'de> Deserialize<'de> for Number {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            text.parse::<u8>().map(|_| Self).map_err(serde::de::Error::custom)
        }
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        number: u8,
        #[serde(default)]
        names: BTreeMap<String, Number>,
        #[serde(default)]
        list: Vec<Number>,
        #[serde(default)]
        pair: Option<(u8, u8)>,
    }

    #[derive(Debug, Deserialize)]
    enum Word {
        A,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Outer {
        before: Option<Value>,
        inners: Vec<Inner>,
        #[serde(default)]
        words: Vec<Word>,
    }

    fn path(text: &str) -> String {
        let error = serde_json::from_str::<Outer>(text).unwrap_err();
        JsonPath::of(&error, text.as_bytes()).to_string()
    }

    #[test]
    fn the_value_of_a_wrong_type_is_named() {
        for wrong in ["\"x\"", "300", "-1", "1.5", "{}", "[1]", "true", "null"] {
            for before in ["", "\"before\": {\"a\": [1, {\"b\\\"]}\": \"\\\\\"}]}, "] {
                for after in ["", ", \"names\": {}"] {
                    let text = format!(
                        "{{{before}\n \"inners\": [{{\"number\": 1}},\n {{\"number\": {wrong}{after} }}]}}"
                    );
                    assert_eq!(path(&text), "inners[1].number", "{text}");
                }
            }
        }
        assert_eq!(path(r#"{"inners": 7}"#), "inners");
        assert_eq!(path("[]"), ".");
        assert_eq!(path(r#"{"inners": [{"number": 1}, [ ] ]}"#), "inners[1]");
        assert_eq!(path(r#"{"inners": [{"number": 1, "list": ["1", {}]}]}"#), "inners[0].list[1]");
    }

    #[test]
    fn a_value_that_its_type_refuses_later_is_named_too() {
        for (inner, expected) in [
            (r#""names": {"a": "1", "b": "x"}"#, "inners[0].names.b"),
            (r#""names": {"a": "x", "b": "1"}"#, "inners[0].names.a"),
            ("\"names\": {\"a\": \"x\"\n }\n", "inners[0].names.a"),
            (r#""list": ["1", "x"]"#, "inners[0].list[1]"),
            (r#""list": ["x" , "1"]"#, "inners[0].list[0]"),
            (r#""names": {"é\u0041\"": "x"}"#, "inners[0].names.éA\""),
            (r#""pair": [1, "x"]"#, "inners[0].pair[1]"),
        ] {
            assert_eq!(path(&format!(r#"{{"inners": [{{"number": 1, {inner}}}]}}"#)), expected, "{inner}");
        }
    }

    #[test]
    fn another_value_in_the_place_of_a_word_is_named() {
        for wrong in ["\"B\"", "{}", "[]", "[1]", "{\"B\": 1}", "7", "true"] {
            assert_eq!(path(&format!(r#"{{"inners": [], "words": ["A", {wrong}]}}"#)), "words[1]", "{wrong}");
            assert_eq!(
                path(&format!(r#"{{"inners": [], "words": [ {wrong}, "A"]}}"#)),
                "words[0]",
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_is_missing_or_too_much_is_the_wholes() {
        assert_eq!(path(r#"{"inners": [{"number": 1}, {"names": {"a": "1"}}]}"#), "inners[1]");
        assert_eq!(path(r#"{"inners": [{}]}"#), "inners[0]");
        assert_eq!(path("{}"), ".");
        assert_eq!(path(r#"{"inners": [{"number": 1, "pair": [1]}]}"#), "inners[0].pair");
        assert_eq!(path(r#"{"inners": [{"number": 1, "other": 1}]}"#), "inners[0].other");
    }

    #[test]
    fn a_value_can_be_taken_out() {
        let text = json!({"inners": [{"number": 1}, {"number": "x"}, {"number": 2}]}).to_string();
        let error = serde_json::from_str::<Outer>(&text).unwrap_err();
        let mut value = serde_json::from_str(&text).unwrap();
        assert!(JsonPath::of(&error, text.as_bytes()).remove_from(&mut value));
        assert_eq!(value, json!({"inners": [{"number": 1}, {}, {"number": 2}]}));
        let path = JsonPath(vec![Step::Key("inners".to_owned()), Step::Index(1)]);
        assert!(path.remove_from(&mut value));
        assert_eq!(value, json!({"inners": [{"number": 1}, {"number": 2}]}));
        assert!(!JsonPath(vec![Step::Index(0)]).remove_from(&mut value));
        assert!(!JsonPath(Vec::new()).remove_from(&mut value));
    }
}
