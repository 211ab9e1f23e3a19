//! Messages of CRIU's protocol as bytes: as much of the encoding of protocol buffers as `images/rpc.proto` needs, which is
//! numbers, texts and messages in messages. A generated type has a hundred fields of which thirty are used, and brings a
//! library; this is a page.

/// A message that is being put together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// A field that is a number; one below zero is written as protocol buffers do, in 64 bits.
    pub fn number(&mut self, field: u32, value: i64) {
        self.tag(field, 0);
        self.varint(value.cast_unsigned());
    }

    /// A field that is a truth value, which is false when it is left out.
    pub fn flag(&mut self, field: u32, value: bool) {
        if value {
            self.number(field, 1);
        }
    }

    /// A field that is a text. CRIU takes it as a C string.
    pub fn text(&mut self, field: u32, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    /// A field that is a message.
    pub fn message(&mut self, field: u32, value: &Self) {
        self.bytes(field, &value.0);
    }

    /// The whole.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes(&mut self, field: u32, value: &[u8]) {
        self.tag(field, 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn tag(&mut self, field: u32, kind: u8) {
        self.varint(u64::from(field) << 3 | u64::from(kind));
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number or a truth value.
    Number(u64),
    /// A text or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message, in order. Values of fixed length, which CRIU does not use, are left out. `None` when it is no message.
pub fn fields(mut bytes: &[u8]) -> Option<Vec<(u32, Value<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let field = u32::try_from(tag >> 3).ok()?;
        match tag & 7 {
            0 => fields.push((field, Value::Number(varint(&mut bytes)?))),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                fields.push((field, Value::Bytes(take(&mut bytes, length)?)));
            }
            1 => drop(take(&mut bytes, 8)?),
            5 => drop(take(&mut bytes, 4)?),
            _ => return None,
        }
    }
    Some(fields)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_other_encoders_write() {
        let mut inner = Message::default();
        inner.text(1, "a");
        let mut message = Message::default();
        message.number(1, 150);
        message.number(2, -1);
        message.flag(3, true);
        message.flag(4, false);
        message.text(68, "testing");
        message.message(5, &inner);
        let expected = [
            &[0x08, 0x96, 0x01][..],
            &[0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0x18, 0x01],
            &[0xa2, 0x04, 0x07, 0x74, 0x65, 0x73, 0x74, 0x69, 0x6e, 0x67],
            &[0x2a, 0x03, 0x0a, 0x01, 0x61],
        ]
        .concat();
        assert_eq!(message.as_bytes(), expected);
        let read = fields(message.as_bytes()).unwrap();
        assert_eq!(read.len(), 5);
        assert_eq!(read[1], (2, Value::Number(u64::MAX)));
        assert_eq!(read[3], (68, Value::Bytes(b"testing")));
        assert_eq!(read[4], (5, Value::Bytes(inner.as_bytes())));
    }

    #[test]
    fn what_is_no_message_is_refused_and_what_is_unknown_left_out() {
        for bad in [
            &[0x08][..],
            &[0x0a, 0x05, 0x61],
            &[0x0b],
            &[0x80; 11],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
            &[0x09, 1],
        ] {
            assert_eq!(fields(bad), None, "{bad:x?}");
        }
        assert_eq!(fields(&[0x0d, 1, 2, 3, 4, 0x08, 1]).unwrap(), [(1, Value::Number(1))]);
        assert_eq!(fields(&[]).unwrap(), []);
    }
}
