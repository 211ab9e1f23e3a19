//! Values as bytes of a message (D-Bus specification, "Marshaling").

use anyhow::{Context, Result, bail};

use super::super::property::Value;

/// Containers in containers, as D-Bus limits them.
pub const MAX_DEPTH: usize = 32;
/// The length of a signature is one byte.
const MAX_SIGNATURE: usize = 255;

/// The type of a value.
pub fn signature(value: &Value) -> String {
    match value {
        Value::Bool(_) => "b".to_owned(),
        Value::Byte(_) => "y".to_owned(),
        Value::I16(_) => "n".to_owned(),
        Value::U16(_) => "q".to_owned(),
        Value::I32(_) => "i".to_owned(),
        Value::U32(_) => "u".to_owned(),
        Value::I64(_) => "x".to_owned(),
        Value::U64(_) => "t".to_owned(),
        Value::Double(_) => "d".to_owned(),
        Value::Text(_) => "s".to_owned(),
        Value::ObjectPath(_) => "o".to_owned(),
        Value::Signature(_) => "g".to_owned(),
        Value::Variant(_) => "v".to_owned(),
        Value::Struct(values) => format!("({})", values.iter().map(signature).collect::<String>()),
        Value::Array(element, _) => format!("a{element}"),
        Value::Dict(key, value, _) => format!("a{{{key}{value}}}"),
    }
}

/// The complete types that a signature is made of.
pub fn split(signature: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let mut rest = signature;
    while !rest.is_empty() {
        let (part, after) = rest.split_at_checked(complete(rest)?)?;
        parts.push(part);
        rest = after;
    }
    Some(parts)
}

/// Types without others in them: those that the key of a dictionary may have.
const BASIC: &[u8] = b"ybnqiuxtdsogh";

/// The length of the first complete type (D-Bus specification, "Valid Signatures"). `None` where there is none.
pub fn complete(signature: &str) -> Option<usize> {
    fn length(kinds: &[u8], depth: usize) -> Option<usize> {
        if depth > MAX_DEPTH {
            return None;
        }
        match kinds {
            [b'a', b'{', key, rest @ ..] => {
                let value = length(rest, depth + 1)?;
                (BASIC.contains(key) && rest.get(value) == Some(&b'}')).then_some(value + 4)
            }
            [b'a', rest @ ..] => Some(1 + length(rest, depth + 1)?),
            [b'(', rest @ ..] => {
                let mut at = length(rest, depth + 1)?;
                while rest.get(at)? != &b')' {
                    at += length(rest.get(at..)?, depth + 1)?;
                }
                Some(at + 2)
            }
            [kind, ..] => (*kind == b'v' || BASIC.contains(kind)).then_some(1),
            [] => None,
        }
    }
    length(signature.as_bytes(), 0)
}

/// Whether a message may hold the value: a bus ends the connection of who sends another one. The error says why not.
pub fn check(value: &Value) -> Result<(), String> {
    let kind = signature(value);
    if complete(&kind) != Some(kind.len()) || kind.len() > MAX_SIGNATURE {
        return Err(format!("D-Bus has no type {kind:?}"));
    }
    check_texts(value)
}

fn check_texts(value: &Value) -> Result<(), String> {
    match value {
        Value::Text(text) if text.contains('\0') => Err(format!("{text:?} holds a null byte")),
        Value::ObjectPath(path) if !is_object_path(path) => Err(format!("{path:?} is no object path")),
        Value::Signature(kinds) if kinds.len() > MAX_SIGNATURE || split(kinds).is_none() => {
            Err(format!("{kinds:?} is no signature"))
        }
        Value::Variant(inner) => check(inner),
        Value::Struct(values) | Value::Array(_, values) => values.iter().try_for_each(check_texts),
        Value::Dict(_, _, entries) => {
            entries.iter().flat_map(|(key, value)| [key, value]).try_for_each(check_texts)
        }
        _ => Ok(()),
    }
}

/// D-Bus specification, "Valid Object Paths"
fn is_object_path(path: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    path == "/" || path.strip_prefix('/').is_some_and(|names| names.split('/').all(is_name))
}

/// Where a value of that type may begin.
fn alignment(kind: &str) -> usize {
    match kind.as_bytes().first() {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a') => 4,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 1,
    }
}

/// Appends the values, little-endian. The first byte of `bytes` is the first of the message.
pub fn encode(bytes: &mut Vec<u8>, values: &[Value]) {
    for value in values {
        put(bytes, value);
    }
}

/// Fills up with zeros.
pub fn align(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put(bytes: &mut Vec<u8>, value: &Value) {
    align(bytes, alignment(&signature(value)));
    match value {
        Value::Bool(value) => bytes.extend(u32::from(*value).to_le_bytes()),
        Value::Byte(value) => bytes.push(*value),
        Value::I16(value) => bytes.extend(value.to_le_bytes()),
        Value::U16(value) => bytes.extend(value.to_le_bytes()),
        Value::I32(value) => bytes.extend(value.to_le_bytes()),
        Value::U32(value) => bytes.extend(value.to_le_bytes()),
        Value::I64(value) => bytes.extend(value.to_le_bytes()),
        Value::U64(value) => bytes.extend(value.to_le_bytes()),
        Value::Double(value) => bytes.extend(value.to_le_bytes()),
        Value::Text(text) | Value::ObjectPath(text) => {
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
            bytes.push(0);
        }
        Value::Signature(text) => put_signature(bytes, text),
        Value::Variant(inner) => {
            put_signature(bytes, &signature(inner));
            put(bytes, inner);
        }
        Value::Struct(values) => encode(bytes, values),
        Value::Array(element, values) => put_array(bytes, alignment(element), |bytes| encode(bytes, values)),
        Value::Dict(_, _, entries) => put_array(bytes, 8, |bytes| {
            for (key, value) in entries {
                align(bytes, 8);
                put(bytes, key);
                put(bytes, value);
            }
        }),
    }
}

fn put_signature(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(text.len() as u8);
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

/// The length counts the elements, not the filling before the first.
fn put_array(bytes: &mut Vec<u8>, alignment: usize, elements: impl FnOnce(&mut Vec<u8>)) {
    let length = bytes.len();
    bytes.extend([0; 4]);
    align(bytes, alignment);
    let start = bytes.len();
    elements(bytes);
    let count = (bytes.len() - start) as u32;
    if let Some(place) = bytes.get_mut(length..length + 4) {
        place.copy_from_slice(&count.to_le_bytes());
    }
}

/// Reads values from a message.
#[derive(Debug)]
pub struct Reader<'m> {
    message: &'m [u8],
    at: usize,
    big_endian: bool,
    depth: usize,
}

impl<'m> Reader<'m> {
    /// Begins at byte `at` of a message.
    pub fn new(message: &'m [u8], at: usize, big_endian: bool) -> Self {
        Self { message, at, big_endian, depth: 0 }
    }

    /// How many bytes have been read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The next values.
    pub fn values(&mut self, signature: &str) -> Result<Vec<Value>> {
        let kinds = split(signature).with_context(|| format!("{signature:?} is no signature"))?;
        kinds.into_iter().map(|kind| self.value(kind)).collect()
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&'m [u8]> {
        let end = self.at.checked_add(count);
        let bytes = end.and_then(|end| self.message.get(self.at..end)).context("a message ends too early")?;
        self.at += count;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.align(N);
        let mut bytes: [u8; N] = self.take(N)?.try_into()?;
        if self.big_endian {
            bytes.reverse();
        }
        Ok(bytes)
    }

    fn length(&mut self) -> Result<usize> {
        Ok(u32::from_le_bytes(self.number()?) as usize)
    }

    fn text(&mut self, length: usize) -> Result<String> {
        let text = String::from_utf8(self.take(length)?.to_vec())?;
        self.take(1)?;
        Ok(text)
    }

    fn value(&mut self, kind: &str) -> Result<Value> {
        self.depth += 1;
        if self.depth > MAX_DEPTH * 2 {
            bail!("a message with too many containers in each other");
        }
        self.align(alignment(kind));
        let inner = kind.get(1..).unwrap_or_default();
        let value = match kind.as_bytes().first() {
            Some(b'y') => Value::Byte(u8::from_le_bytes(self.number()?)),
            Some(b'b') => Value::Bool(u32::from_le_bytes(self.number()?) != 0),
            Some(b'n') => Value::I16(i16::from_le_bytes(self.number()?)),
            Some(b'q') => Value::U16(u16::from_le_bytes(self.number()?)),
            // a descriptor's place in the list that came along
            Some(b'u' | b'h') => Value::U32(u32::from_le_bytes(self.number()?)),
            Some(b'i') => Value::I32(i32::from_le_bytes(self.number()?)),
            Some(b'x') => Value::I64(i64::from_le_bytes(self.number()?)),
            Some(b't') => Value::U64(u64::from_le_bytes(self.number()?)),
            Some(b'd') => Value::Double(f64::from_le_bytes(self.number()?)),
            Some(b's') => Value::Text(self.long_text()?),
            Some(b'o') => Value::ObjectPath(self.long_text()?),
            Some(b'g') => Value::Signature(self.short_text()?),
            Some(b'v') => {
                let kind = self.short_text()?;
                let mut values = self.values(&kind)?;
                match (values.pop(), values.is_empty()) {
                    (Some(value), true) => Value::Variant(Box::new(value)),
                    _ => bail!("a variant of type {kind:?}"),
                }
            }
            Some(b'(') => Value::Struct(self.values(inner.strip_suffix(')').unwrap_or_default())?),
            Some(b'a') => self.array(inner)?,
            _ => bail!("{kind:?} is no type"),
        };
        self.depth -= 1;
        Ok(value)
    }

    fn long_text(&mut self) -> Result<String> {
        let length = self.length()?;
        self.text(length)
    }

    fn short_text(&mut self) -> Result<String> {
        let [length] = self.number()?;
        self.text(usize::from(length))
    }

    fn array(&mut self, element: &str) -> Result<Value> {
        let length = self.length()?;
        self.align(alignment(element));
        let end = self.at.checked_add(length).filter(|end| *end <= self.message.len());
        let end = end.context("a message ends too early")?;
        let Some(kinds) = element.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')) else {
            let mut values = Vec::new();
            while self.at < end {
                values.push(self.value(element)?);
            }
            return Ok(Value::Array(element.to_owned(), values));
        };
        let Some([key, value]) = split(kinds).and_then(|kinds| <[&str; 2]>::try_from(kinds).ok()) else {
            bail!("{element:?} is no entry of a dictionary")
        };
        let mut entries = Vec::new();
        while self.at < end {
            self.align(8);
            entries.push((self.value(key)?, self.value(value)?));
        }
        Ok(Value::Dict(key.to_owned(), value.to_owned(), entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn values_are_laid_out_as_the_specification_shows() {
        let mut bytes = Vec::new();
        let pair = Value::Struct(vec![text("k"), Value::Variant(Box::new(Value::Bool(true)))]);
        encode(&mut bytes, &[Value::Byte(7), Value::U32(258), Value::Array("(sv)".to_owned(), vec![pair])]);
        assert_eq!(
            bytes,
            [
                7, 0, 0, 0, 2, 1, 0, 0, // a byte, filling, a number
                16, 0, 0, 0, 0, 0, 0, 0, // the array's length, filling
                1, 0, 0, 0, b'k', 0, // a string
                1, b'b', 0, // a variant's type
                0, 0, 0, 1, 0, 0, 0, // filling, true
            ]
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let values = [
            Value::Byte(1),
            Value::I16(-2),
            Value::U16(3),
            Value::Bool(true),
            Value::I32(-4),
            Value::I64(-5),
            Value::U64(u64::MAX),
            Value::Double(1.5),
            Value::ObjectPath("/a".to_owned()),
            Value::Signature("a{sv}(ii)".to_owned()),
            Value::bytes([1, 2, 3]),
            Value::Array("(st)".to_owned(), vec![Value::Struct(vec![text("ä"), Value::U64(1)])]),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
            Value::Dict(
                "s".to_owned(),
                "v".to_owned(),
                vec![
                    (text("a"), Value::Variant(Box::new(Value::Array("s".to_owned(), vec![text("x")])))),
                    (text("b"), Value::Variant(Box::new(Value::U32(1)))),
                ],
            ),
        ];
        let mut bytes = Vec::new();
        encode(&mut bytes, &values);
        let signature: String = values.iter().map(signature).collect();
        let mut reader = Reader::new(&bytes, 0, false);
        assert_eq!(reader.values(&signature).unwrap(), values);
        assert_eq!(reader.position(), bytes.len());
        for end in 0..bytes.len() {
            assert!(Reader::new(&bytes[..end], 0, false).values(&signature).is_err(), "{end}");
        }
    }

    #[test]
    fn big_endian_is_read_too() {
        let bytes = [0, 0, 1, 2, 0, 0, 0, 1, b'a', 0];
        let read = Reader::new(&bytes, 0, true).values("us").unwrap();
        assert_eq!(read, [Value::U32(258), text("a")]);
    }

    #[test]
    fn wrong_messages_are_errors() {
        for (bytes, signature) in [
            (&[255, 255, 255, 255][..], "as"),
            (&[255, 255, 255, 255], "s"),
            (&[1, 0, 0, 0, 0xff, 0], "s"),
            (&[1, b'z', 0, 0], "v"),
            (&[0, 0], "v"),
            (&[2, b'y', b'y', 0, 1, 1], "v"),
            (&[], "(y"),
            (&[1], "z"),
        ] {
            assert!(Reader::new(bytes, 0, false).values(signature).is_err(), "{signature} of {bytes:?}");
        }
        let deep = [1, b'v', 0].repeat(1000);
        assert!(Reader::new(&deep, 0, false).values("v").is_err());
    }
}
