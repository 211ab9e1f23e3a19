//! A property of a systemd unit, as data (org.freedesktop.systemd1(5)).

use std::fmt;

/// A name with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Property {
    /// As systemd spells it: `MemoryMax`.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// The field of the configuration that asks for it.
    pub field: String,
}

/// A D-Bus value (D-Bus specification, "Type system").
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `y`
    Byte(u8),
    /// `n`
    I16(i16),
    /// `q`
    U16(u16),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `d`
    Double(f64),
    /// `s`
    Text(String),
    /// `o`
    ObjectPath(String),
    /// `g`
    Signature(String),
    /// `v`
    Variant(Box<Value>),
    /// `(...)`
    Struct(Vec<Value>),
    /// `a...`: the signature of the elements, which an empty array would not tell, and the elements.
    Array(String, Vec<Value>),
    /// `a{..}`: the signatures of key and value, and the entries.
    Dict(String, String, Vec<(Value, Value)>),
}

impl Value {
    /// `ay`
    pub fn bytes(bytes: impl IntoIterator<Item = u8>) -> Self {
        Self::Array("y".to_owned(), bytes.into_iter().map(Self::Byte).collect())
    }
}

/// As GVariant text, without types.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, values: &[Value]| {
            for (index, value) in values.iter().enumerate() {
                write!(f, "{}{value}", if index == 0 { "" } else { ", " })?;
            }
            Ok(())
        };
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Byte(value) => write!(f, "{value}"),
            Self::I16(value) => write!(f, "{value}"),
            Self::U16(value) => write!(f, "{value}"),
            Self::I32(value) => write!(f, "{value}"),
            Self::U32(value) => write!(f, "{value}"),
            Self::I64(value) => write!(f, "{value}"),
            Self::U64(value) => write!(f, "{value}"),
            Self::Double(value) => write!(f, "{value}"),
            Self::Text(text) | Self::ObjectPath(text) | Self::Signature(text) => write!(f, "{text:?}"),
            Self::Variant(value) => write!(f, "<{value}>"),
            Self::Struct(values) => {
                f.write_str("(")?;
                list(f, values)?;
                f.write_str(")")
            }
            Self::Array(_, values) => {
                f.write_str("[")?;
                list(f, values)?;
                f.write_str("]")
            }
            Self::Dict(_, _, entries) => {
                f.write_str("{")?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    write!(f, "{}{key}: {value}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_as_they_are_written_in_annotations() {
        let text = |text: &str| Value::Text(text.to_owned());
        for (value, shown) in [
            (Value::U64(5), "5"),
            (Value::Array("s".to_owned(), vec![text("a"), text("b")]), r#"["a", "b"]"#),
            (Value::Struct(vec![text("/dev/a"), Value::Bool(true)]), r#"("/dev/a", true)"#),
            (Value::Dict("s".to_owned(), "i".to_owned(), vec![(text("a"), Value::I32(-1))]), r#"{"a": -1}"#),
            (Value::Variant(Box::new(Value::Double(1.5))), "<1.5>"),
        ] {
            assert_eq!(value.to_string(), shown);
        }
    }
}
