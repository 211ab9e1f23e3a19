//! A property of a systemd unit, as data (org.freedesktop.systemd1(5)).

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
