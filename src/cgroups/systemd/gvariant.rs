//! GVariant text, in which annotations give values for the properties of a unit (GLib, "GVariant Text Format").
//!
//! A value has the type that is written before it (`uint64 5`, `@at []`), the one that its neighbours in an array have, or a
//! default: `int32` for a number without a fraction, `double` for one with it, a string for text. D-Bus has no `maybe` types.

use std::iter::Peekable;
use std::str::Chars;

use super::super::property::Value;
use super::wire::{MAX_DEPTH, check, complete, split};

/// The value that the text says; the error says why it says none.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader { rest: text.chars().peekable(), depth: 0 };
    let node = reader.node()?;
    reader.space();
    if let Some(c) = reader.rest.next() {
        return Err(format!("{c:?} comes after the end of the value"));
    }
    let value = node.value(None)?;
    check(&value).map(|()| value)
}

/// A value whose type may not be decided yet.
#[derive(Debug)]
enum Node {
    Bool(bool),
    Number(String),
    Text(String),
    Bytes(Vec<u8>),
    Array(Vec<Node>),
    Struct(Vec<Node>),
    Dict(Vec<(Node, Node)>),
    Variant(Box<Node>),
    /// With its type before it.
    Typed(String, Box<Node>),
}

impl Node {
    /// Its type, when it says so itself.
    fn said(&self) -> Option<String> {
        Some(match self {
            Self::Bool(_) => "b".to_owned(),
            Self::Number(_) => return None,
            Self::Text(_) => "s".to_owned(),
            Self::Bytes(_) => "ay".to_owned(),
            Self::Array(nodes) => format!("a{}", nodes.iter().find_map(Self::said)?),
            Self::Struct(nodes) => {
                let types: Option<String> = nodes.iter().map(Self::said).collect();
                format!("({})", types?)
            }
            Self::Dict(entries) => {
                let key = entries.iter().find_map(|(key, _)| key.said())?;
                format!("a{{{key}{}}}", entries.iter().find_map(|(_, value)| value.said())?)
            }
            Self::Variant(_) => "v".to_owned(),
            Self::Typed(kind, _) => kind.clone(),
        })
    }

    /// Its type, with defaults where it does not say.
    fn kind(&self) -> Result<String, String> {
        if let Some(said) = self.said() {
            return Ok(said);
        }
        let none = || "an empty array has no type: write it as @as []".to_owned();
        Ok(match self {
            Self::Number(text) if is_fraction(text) => "d".to_owned(),
            Self::Number(_) => "i".to_owned(),
            Self::Array(nodes) => {
                let fraction =
                    nodes.iter().find(|node| matches!(node, Self::Number(text) if is_fraction(text)));
                format!("a{}", fraction.or(nodes.first()).ok_or_else(none)?.kind()?)
            }
            Self::Struct(nodes) => {
                format!("({})", nodes.iter().map(Self::kind).collect::<Result<String, _>>()?)
            }
            Self::Dict(entries) => {
                let (key, value) = entries.first().ok_or_else(none)?;
                format!("a{{{}{}}}", key.kind()?, value.kind()?)
            }
            _ => return Err(none()),
        })
    }

    fn value(&self, wanted: Option<&str>) -> Result<Value, String> {
        if let Self::Typed(kind, node) = self {
            return match wanted {
                Some(wanted) if wanted != kind => Err(format!("a value of type {kind} where {wanted} is")),
                _ => node.value(Some(kind)),
            };
        }
        let kind = wanted.map_or_else(|| self.kind(), |wanted| Ok(wanted.to_owned()))?;
        let wrong = || format!("{} is no value of type {kind}", self.name());
        let inner = kind.get(1..).unwrap_or_default();
        Ok(match (self, kind.as_bytes().first()) {
            (Self::Bool(value), Some(b'b')) => Value::Bool(*value),
            (Self::Number(text), _) => number(text, &kind).ok_or_else(wrong)?,
            (Self::Text(text), Some(b's')) => Value::Text(text.clone()),
            (Self::Text(text), Some(b'o')) => Value::ObjectPath(text.clone()),
            (Self::Text(text), Some(b'g')) => Value::Signature(text.clone()),
            (Self::Bytes(bytes), Some(b'a')) if inner == "y" => Value::bytes(bytes.iter().copied()),
            (Self::Variant(node), Some(b'v')) => Value::Variant(Box::new(node.value(None)?)),
            (Self::Array(nodes), Some(b'a')) if !inner.starts_with('{') => {
                let values = nodes.iter().map(|node| node.value(Some(inner)));
                Value::Array(inner.to_owned(), values.collect::<Result<_, _>>()?)
            }
            (Self::Struct(nodes), Some(b'(')) => {
                let kinds = split(inner.strip_suffix(')').ok_or_else(wrong)?).ok_or_else(wrong)?;
                if kinds.len() != nodes.len() {
                    return Err(wrong());
                }
                let values = nodes.iter().zip(kinds).map(|(node, kind)| node.value(Some(kind)));
                Value::Struct(values.collect::<Result<_, _>>()?)
            }
            (Self::Dict(entries), Some(b'a')) => {
                let kinds = inner.strip_prefix('{').and_then(|inner| inner.strip_suffix('}'));
                let kinds = kinds.and_then(split).ok_or_else(wrong)?;
                let [key, value] = kinds.as_slice() else { return Err(wrong()) };
                let entry = |(k, v): &(Node, Node)| Ok((k.value(Some(key))?, v.value(Some(value))?));
                let entries = entries.iter().map(entry).collect::<Result<_, String>>()?;
                Value::Dict((*key).to_owned(), (*value).to_owned(), entries)
            }
            _ => return Err(wrong()),
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "this number",
            Self::Text(_) => "a string",
            Self::Bytes(_) => "a string of bytes",
            Self::Array(_) => "an array",
            Self::Struct(_) => "a tuple",
            Self::Dict(_) => "a dictionary",
            Self::Variant(_) => "a variant",
            Self::Typed(..) => "a typed value",
        }
    }
}

fn is_fraction(text: &str) -> bool {
    !text.contains("0x") && (text.contains(['.', 'e', 'E']) || text.ends_with("inf") || text.ends_with("nan"))
}

/// Decimal, `0x` hexadecimal or `0` octal.
fn number(text: &str, kind: &str) -> Option<Value> {
    if kind == "d" {
        return text.parse().ok().map(Value::Double);
    }
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let absolute = match (digits.strip_prefix("0x"), digits.strip_prefix('0')) {
        (Some(hex), _) => i128::from_str_radix(hex, 16).ok()?,
        (None, Some(octal)) if !octal.is_empty() => i128::from_str_radix(octal, 8).ok()?,
        _ => digits.parse::<i128>().ok()?,
    };
    let value = if negative { -absolute } else { absolute };
    Some(match kind {
        "y" => Value::Byte(value.try_into().ok()?),
        "n" => Value::I16(value.try_into().ok()?),
        "q" => Value::U16(value.try_into().ok()?),
        "i" => Value::I32(value.try_into().ok()?),
        "u" => Value::U32(value.try_into().ok()?),
        "x" => Value::I64(value.try_into().ok()?),
        "t" => Value::U64(value.try_into().ok()?),
        _ => return None,
    })
}

struct Reader<'t> {
    rest: Peekable<Chars<'t>>,
    depth: usize,
}

impl Reader<'_> {
    fn space(&mut self) {
        while self.rest.next_if(|c| c.is_whitespace()).is_some() {}
    }

    fn peek(&mut self) -> Option<char> {
        self.space();
        self.rest.peek().copied()
    }

    fn take(&mut self, wanted: char) -> bool {
        let there = self.peek() == Some(wanted);
        if there {
            self.rest.next();
        }
        there
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.take(wanted) { Ok(()) } else { Err(format!("{wanted:?} is missing")) }
    }

    fn word(&mut self, part: impl Fn(char) -> bool) -> String {
        let mut word = String::new();
        while let Some(c) = self.rest.next_if(|c| part(*c)) {
            word.push(c);
        }
        word
    }

    fn node(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("more than 32 containers in each other".to_owned());
        }
        let node = match self.peek() {
            None => Err("a value is missing".to_owned()),
            Some('[') => self.list(']').map(Node::Array),
            Some('(') => self.list(')').map(Node::Struct),
            Some('{') => self.dict(),
            Some('<') => {
                self.rest.next();
                let node = self.node()?;
                self.expect('>').map(|()| Node::Variant(Box::new(node)))
            }
            Some('\'' | '"') => self.text().map(Node::Text),
            Some('@') => {
                self.rest.next();
                let kind = self.word(|c| !c.is_whitespace());
                if complete(&kind) != Some(kind.len()) {
                    return Err(format!("{kind:?} is no type"));
                }
                self.node().map(|node| Node::Typed(kind, Box::new(node)))
            }
            Some('0'..='9' | '+' | '-' | '.') => {
                Ok(Node::Number(self.word(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))))
            }
            Some(_) => self.named(),
        };
        self.depth -= 1;
        node
    }

    /// A keyword, or a type's name and its value.
    fn named(&mut self) -> Result<Node, String> {
        let word = self.word(|c| c.is_ascii_alphanumeric());
        let kind = match word.as_str() {
            "true" => return Ok(Node::Bool(true)),
            "false" => return Ok(Node::Bool(false)),
            "inf" | "nan" => return Ok(Node::Number(word)),
            "b" if matches!(self.rest.peek(), Some('\'' | '"')) => {
                let mut bytes = self.text()?.into_bytes();
                bytes.push(0);
                return Ok(Node::Bytes(bytes));
            }
            "boolean" => "b",
            "byte" => "y",
            "int16" => "n",
            "uint16" => "q",
            "int32" | "handle" => "i",
            "uint32" => "u",
            "int64" => "x",
            "uint64" => "t",
            "double" => "d",
            "string" => "s",
            "objectpath" => "o",
            "signature" => "g",
            "just" | "nothing" => return Err("D-Bus has no maybe types".to_owned()),
            _ => return Err(format!("{word:?} is neither a value nor a type")),
        };
        self.node().map(|node| Node::Typed(kind.to_owned(), Box::new(node)))
    }

    fn list(&mut self, end: char) -> Result<Vec<Node>, String> {
        self.rest.next();
        let mut nodes = Vec::new();
        while !self.take(end) {
            nodes.push(self.node()?);
            if !self.take(',') {
                self.expect(end)?;
                break;
            }
        }
        Ok(nodes)
    }

    fn dict(&mut self) -> Result<Node, String> {
        self.rest.next();
        let mut entries = Vec::new();
        while !self.take('}') {
            let key = self.node()?;
            self.expect(':')?;
            entries.push((key, self.node()?));
            if !self.take(',') {
                self.expect('}')?;
                break;
            }
        }
        Ok(Node::Dict(entries))
    }

    fn text(&mut self) -> Result<String, String> {
        let quote = self.rest.next();
        let mut text = String::new();
        loop {
            match self.rest.next() {
                None => return Err("a string has no end".to_owned()),
                end if end == quote => return Ok(text),
                Some('\\') => text.push(self.escaped()?),
                Some(c) => text.push(c),
            }
        }
    }

    fn escaped(&mut self) -> Result<char, String> {
        let code = |reader: &mut Self, digits: usize| {
            let text: String = (0..digits).filter_map(|_| reader.rest.next()).collect();
            let number = u32::from_str_radix(&text, 16).ok().filter(|_| text.len() == digits);
            number.and_then(char::from_u32).ok_or_else(|| format!("{text:?} is no character's number"))
        };
        match self.rest.next() {
            Some('u') => code(self, 4),
            Some('U') => code(self, 8),
            Some('a') => Ok('\u{7}'),
            Some('b') => Ok('\u{8}'),
            Some('f') => Ok('\u{c}'),
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            Some('v') => Ok('\u{b}'),
            Some(c) => Ok(c),
            None => Err("a string has no end".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[&str]) -> Value {
        Value::Array("s".to_owned(), values.iter().map(|text| Value::Text((*text).to_owned())).collect())
    }

    #[test]
    fn plain_values_have_the_default_types() {
        for (text, value) in [
            ("true", Value::Bool(true)),
            (" false ", Value::Bool(false)),
            ("5", Value::I32(5)),
            ("-0x10", Value::I32(-16)),
            ("010", Value::I32(8)),
            ("0", Value::I32(0)),
            ("1.5", Value::Double(1.5)),
            ("1e3", Value::Double(1000.0)),
            ("'str'", Value::Text("str".to_owned())),
            (r#""it's \"ä\" \u00e4\n""#, Value::Text("it's \"ä\" ä\n".to_owned())),
            ("['a','b']", texts(&["a", "b"])),
            ("['a', 'b',]", texts(&["a", "b"])),
            ("b'ab'", Value::bytes(*b"ab\0")),
            ("(1, 'a')", Value::Struct(vec![Value::I32(1), Value::Text("a".to_owned())])),
            ("<5>", Value::Variant(Box::new(Value::I32(5)))),
        ] {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn types_are_said_before_values_and_reach_into_them() {
        let device = |path: &str, rate| Value::Struct(vec![Value::Text(path.to_owned()), Value::U64(rate)]);
        for (text, value) in [
            ("uint64 5", Value::U64(5)),
            ("uint64 18446744073709551615", Value::U64(u64::MAX)),
            ("byte 0xff", Value::Byte(255)),
            ("int64 -5", Value::I64(-5)),
            ("double 2", Value::Double(2.0)),
            ("objectpath '/a/b'", Value::ObjectPath("/a/b".to_owned())),
            ("@as []", Value::Array("s".to_owned(), Vec::new())),
            ("[uint32 1, 2]", Value::Array("u".to_owned(), vec![Value::U32(1), Value::U32(2)])),
            ("[1, uint16 2]", Value::Array("q".to_owned(), vec![Value::U16(1), Value::U16(2)])),
            ("@a(st) [('/dev/a', 5)]", Value::Array("(st)".to_owned(), vec![device("/dev/a", 5)])),
            (
                "@a{sv} {'a': <uint32 1>}",
                Value::Dict(
                    "s".to_owned(),
                    "v".to_owned(),
                    vec![(Value::Text("a".to_owned()), Value::Variant(Box::new(Value::U32(1))))],
                ),
            ),
        ] {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "x",
            "tru",
            "5 6",
            "'a",
            "['a'",
            "['a', 5]",
            "[]",
            "{}",
            "uint64 -1",
            "byte 256",
            "uint64 'a'",
            "@as ['a'] x",
            "@ 5",
            "@a 5",
            "@(s 5",
            "just 5",
            "nothing",
            "'\\u12'",
            "<5",
            "{'a' 5}",
            "--5",
            "0x",
            "1.5.2",
            // what a bus would end the connection for
            "()",
            "@az []",
            "@a{vs} {}",
            "{(1, 2): 3}",
            "objectpath 'a'",
            "objectpath '/a/'",
            "signature 'a'",
            "signature 'z'",
            "<'\\u0000'>",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
    }
}
