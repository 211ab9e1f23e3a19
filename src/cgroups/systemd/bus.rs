//! A connection to a service manager over D-Bus: calls, replies and the signals between them (D-Bus specification, "Message
//! protocol"). No thread and no event loop, because a process with threads cannot make namespaces.

use std::collections::VecDeque;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::super::property::Value;
use super::wire::{self, Reader};

/// The service that is spoken to.
const SERVICE: &str = "org.freedesktop.systemd1";
/// Longer messages are not for us: the longest that we ask for is a path.
const MAX_MESSAGE: u32 = 1 << 20;
/// Bytes of a message up to and with the length of its header's fields.
const FIXED: usize = 16;

const LITTLE_ENDIAN: u8 = b'l';
const BIG_ENDIAN: u8 = b'B';
const VERSION: u8 = 1;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

const NO_REPLY_EXPECTED: u8 = 1;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// What the other side answered instead of doing it.
#[derive(Debug)]
pub struct Refused {
    /// `org.freedesktop.systemd1.UnitExists`
    pub name: String,
    text: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() { &self.name } else { &self.text })
    }
}

impl std::error::Error for Refused {}

/// A method of the manager with its arguments.
#[derive(Debug)]
pub struct Call<'a> {
    /// The object.
    pub path: &'a str,
    /// The interface.
    pub interface: &'a str,
    /// The method.
    pub member: &'a str,
    /// Its arguments.
    pub arguments: &'a [Value],
}

/// A connection.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Signals that came before somebody asked for them.
    signals: VecDeque<Message>,
}

#[derive(Debug)]
struct Message {
    kind: u8,
    /// Each a number and a variant.
    fields: Vec<(u8, Value)>,
    body: Vec<Value>,
}

impl Message {
    fn field(&self, code: u8) -> Option<&Value> {
        self.fields.iter().find(|(found, _)| *found == code).map(|(_, value)| value)
    }

    fn text(&self, code: u8) -> &str {
        match self.field(code) {
            Some(Value::Text(text) | Value::Signature(text)) => text,
            _ => "",
        }
    }

    fn answers(&self, serial: u32) -> bool {
        self.field(REPLY_SERIAL) == Some(&Value::U32(serial))
    }
}

impl Bus {
    /// Connects to the socket at `path` and says who we are: our credentials on the socket do. With a `broker` between us and
    /// the manager, which wants to be greeted, and sends only the signals that were asked for.
    pub fn connect(path: &Path, broker: bool, deadline: Instant) -> Result<Self> {
        let stream = UnixStream::connect(path)?;
        let mut bus = Self { stream, serial: 0, signals: VecDeque::new() };
        bus.authenticate(deadline).context("authenticate")?;
        if broker {
            bus.tell_broker("Hello", &[], deadline)?;
            let rule = "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
                        interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";
            bus.tell_broker("AddMatch", &[Value::Text(rule.to_owned())], deadline)?;
            let subscribe = Call {
                path: "/org/freedesktop/systemd1",
                interface: "org.freedesktop.systemd1.Manager",
                member: "Subscribe",
                arguments: &[],
            };
            bus.send(SERVICE, NO_REPLY_EXPECTED, &subscribe, deadline)?;
        }
        Ok(bus)
    }

    /// SASL's EXTERNAL without a name: the id that a socket's peer has is the same in every user namespace, our own number for
    /// it is not.
    fn authenticate(&mut self, deadline: Instant) -> Result<()> {
        self.write(b"\0AUTH EXTERNAL\r\nDATA\r\n", deadline)?;
        for expected in ["DATA", "OK"] {
            let line = self.read_line(deadline)?;
            if !line.starts_with(expected) {
                bail!("the answer is {line:?}");
            }
        }
        self.write(b"BEGIN\r\n", deadline)
    }

    fn read_line(&mut self, deadline: Instant) -> Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.read(&mut byte, deadline)?;
            line.extend(byte);
            if line.len() > 1024 {
                bail!("the answer has no end");
            }
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn tell_broker(&mut self, member: &str, arguments: &[Value], deadline: Instant) -> Result<()> {
        let name = "org.freedesktop.DBus";
        let call = Call { path: "/org/freedesktop/DBus", interface: name, member, arguments };
        self.send(name, NO_REPLY_EXPECTED, &call, deadline).map(drop)
    }

    /// Calls a method and waits for its answer; [`Refused`] when it is an error.
    pub fn call(&mut self, call: &Call<'_>, deadline: Instant) -> Result<Vec<Value>> {
        let serial = self.send(SERVICE, 0, call, deadline)?;
        loop {
            let message = self.receive(deadline)?;
            match message.kind {
                METHOD_RETURN if message.answers(serial) => return Ok(message.body),
                ERROR if message.answers(serial) => {
                    let text = match message.body.first() {
                        Some(Value::Text(text)) => text.clone(),
                        _ => String::new(),
                    };
                    return Err(Refused { name: message.text(ERROR_NAME).to_owned(), text }.into());
                }
                SIGNAL => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    /// The next signal of that name; those of other names are dropped.
    pub fn signal(&mut self, member: &str, deadline: Instant) -> Result<Vec<Value>> {
        loop {
            let message = match self.signals.pop_front() {
                Some(message) => message,
                None => self.receive(deadline)?,
            };
            if message.kind == SIGNAL && message.text(MEMBER) == member {
                return Ok(message.body);
            }
        }
    }

    fn send(&mut self, to: &str, flags: u8, call: &Call<'_>, deadline: Instant) -> Result<u32> {
        self.serial += 1;
        let bytes = encode(self.serial, flags, to, call);
        self.write(&bytes, deadline)?;
        Ok(self.serial)
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message> {
        let mut bytes = vec![0; FIXED];
        self.read(&mut bytes, deadline)?;
        bytes.resize(length(&bytes)?, 0);
        self.read(bytes.get_mut(FIXED..).unwrap_or_default(), deadline)?;
        decode(&bytes)
    }

    fn write(&mut self, bytes: &[u8], deadline: Instant) -> Result<()> {
        self.stream.set_write_timeout(Some(left(deadline)?))?;
        self.stream.write_all(bytes).map_err(late)
    }

    fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<()> {
        self.stream.set_read_timeout(Some(left(deadline)?))?;
        self.stream.read_exact(bytes).map_err(late)
    }
}

fn left(deadline: Instant) -> Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(late(ErrorKind::TimedOut.into())) } else { Ok(left) }
}

fn late(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow::anyhow!("no answer in time"),
        ErrorKind::UnexpectedEof => anyhow::anyhow!("the connection was closed"),
        _ => error.into(),
    }
}

fn encode(serial: u32, flags: u8, to: &str, call: &Call<'_>) -> Vec<u8> {
    let fields = vec![
        (PATH, Value::ObjectPath(call.path.to_owned())),
        (INTERFACE, Value::Text(call.interface.to_owned())),
        (MEMBER, Value::Text(call.member.to_owned())),
        (DESTINATION, Value::Text(to.to_owned())),
    ];
    assemble(METHOD_CALL, flags, serial, fields, call.arguments)
}

fn assemble(kind: u8, flags: u8, serial: u32, mut fields: Vec<(u8, Value)>, arguments: &[Value]) -> Vec<u8> {
    let mut body = Vec::new();
    if !arguments.is_empty() {
        fields.push((SIGNATURE, Value::Signature(arguments.iter().map(wire::signature).collect())));
        wire::encode(&mut body, arguments);
    }
    let field = |(code, value)| Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))]);
    let mut bytes = vec![LITTLE_ENDIAN, kind, flags, VERSION];
    let fields = Value::Array("(yv)".to_owned(), fields.into_iter().map(field).collect());
    wire::encode(&mut bytes, &[Value::U32(body.len() as u32), Value::U32(serial), fields]);
    wire::align(&mut bytes, 8);
    bytes.extend(body);
    bytes
}

/// The length of the whole message that begins with these bytes.
fn length(start: &[u8]) -> Result<usize> {
    let numbers = Reader::new(start, 4, is_big_endian(start)?).values("uuu")?;
    let [Value::U32(body), _, Value::U32(fields)] = numbers.as_slice() else { bail!("this is not D-Bus") };
    if *body > MAX_MESSAGE || *fields > MAX_MESSAGE {
        bail!("a message of more than {MAX_MESSAGE} bytes");
    }
    Ok((FIXED + *fields as usize).next_multiple_of(8) + *body as usize)
}

fn is_big_endian(message: &[u8]) -> Result<bool> {
    match message.first() {
        Some(&LITTLE_ENDIAN) => Ok(false),
        Some(&BIG_ENDIAN) => Ok(true),
        _ => bail!("this is not D-Bus"),
    }
}

fn decode(bytes: &[u8]) -> Result<Message> {
    let big_endian = is_big_endian(bytes)?;
    let mut reader = Reader::new(bytes, 0, big_endian);
    let mut header = reader.values("yyyyuua(yv)")?;
    let (Some(Value::Array(_, fields)), Some(Value::Byte(kind))) = (header.pop(), header.get(1)) else {
        bail!("a message without a header")
    };
    let mut message = Message { kind: *kind, fields: Vec::new(), body: Vec::new() };
    for field in fields {
        if let Value::Struct(field) = field
            && let [Value::Byte(code), Value::Variant(value)] = field.as_slice()
        {
            message.fields.push((*code, (**value).clone()));
        }
    }
    let start = reader.position().next_multiple_of(8);
    message.body = Reader::new(bytes, start, big_endian).values(message.text(SIGNATURE))?;
    Ok(message)
}

#[cfg(test)]
pub mod fake {
    //! A service manager for tests: it answers each call as it is told to.

    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    /// What it sends for a call, in this order.
    pub enum Answer {
        Reply(Vec<Value>),
        Refuse(&'static str, &'static str),
        Signal(&'static str, Vec<Value>),
        Garbage(Vec<u8>),
        /// Nothing more, and the connection stays open.
        Silence,
    }

    pub fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    /// Serves one connection; the answer of the thread is the methods that were called, with their arguments.
    pub fn serve(
        path: &Path,
        mut answer: impl FnMut(&str) -> Vec<Answer> + Send + 'static,
    ) -> JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(path).unwrap();
        #[allow(clippy::disallowed_methods, reason = "a test has no container to clone")]
        std::thread::spawn(move || {
            let stream = listener.accept().unwrap().0;
            let mut bus = Bus { stream, serial: 0, signals: VecDeque::new() };
            let deadline = Instant::now() + Duration::from_secs(20);
            let mut zero = [1];
            bus.read(&mut zero, deadline).unwrap();
            assert_eq!(zero, [0]);
            for (line, reply) in [("AUTH EXTERNAL", "DATA\r\n"), ("DATA", "OK 0123\r\n"), ("BEGIN", "")] {
                assert_eq!(bus.read_line(deadline).unwrap(), line);
                bus.write(reply.as_bytes(), deadline).unwrap();
            }
            let mut calls = Vec::new();
            let mut serial = 0_u32;
            while let Ok(call) = bus.receive(deadline) {
                serial += 1;
                let member = call.text(MEMBER).to_owned();
                let arguments: Vec<String> = call.body.iter().map(|value| format!("{value:?}")).collect();
                calls.push(format!("{member}({})", arguments.join(", ")));
                for answer in answer(&member) {
                    let to = (REPLY_SERIAL, Value::U32(serial));
                    let bytes = match answer {
                        Answer::Reply(body) => assemble(METHOD_RETURN, 0, 1, vec![to], &body),
                        Answer::Refuse(name, why) => {
                            let fields = vec![to, (ERROR_NAME, text(name))];
                            assemble(ERROR, 0, 1, fields, &[text(why)])
                        }
                        Answer::Signal(name, body) => {
                            assemble(SIGNAL, 0, 1, vec![(MEMBER, text(name))], &body)
                        }
                        Answer::Garbage(bytes) => bytes,
                        Answer::Silence => continue,
                    };
                    if bus.write(&bytes, deadline).is_err() {
                        return calls;
                    }
                }
            }
            calls
        })
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{Answer, serve, text};
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn call<'a>(member: &'a str, arguments: &'a [Value]) -> Call<'a> {
        Call {
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member,
            arguments,
        }
    }

    #[test]
    fn calls_replies_errors_and_signals_pass() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let manager = serve(&path, |member| match member {
            "Ask" => vec![
                Answer::Signal("Other", vec![]),
                Answer::Signal("Wanted", vec![Value::U32(7)]),
                Answer::Reply(vec![text("yes"), Value::U64(5)]),
            ],
            _ => vec![Answer::Refuse("org.example.No", "not today")],
        });
        let mut bus = Bus::connect(&path, false, soon()).unwrap();
        let arguments = [
            text("a"),
            Value::Array(
                "(sv)".to_owned(),
                vec![Value::Struct(vec![text("k"), Value::Variant(Box::new(Value::bytes([1, 2])))])],
            ),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
            Value::ObjectPath("/a".to_owned()),
        ];
        let reply = bus.call(&call("Ask", &arguments), soon()).unwrap();
        assert_eq!(reply, [text("yes"), Value::U64(5)]);
        assert_eq!(bus.signal("Wanted", soon()).unwrap(), [Value::U32(7)]);
        let error = bus.call(&call("Refuse", &[]), soon()).unwrap_err();
        assert_eq!(error.downcast_ref::<Refused>().unwrap().name, "org.example.No");
        assert_eq!(error.to_string(), "not today");
        drop(bus);
        let calls = manager.join().unwrap();
        assert!(calls[0].starts_with("Ask(Text(\"a\"), "), "{calls:?}");
        assert_eq!(calls[1], "Refuse()");
    }

    #[test]
    fn a_broker_is_greeted_and_asked_for_signals() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let manager = serve(&path, |_| vec![Answer::Silence]);
        drop(Bus::connect(&path, true, soon()).unwrap());
        let calls = manager.join().unwrap();
        assert_eq!(calls[0], "Hello()");
        assert!(calls[1].starts_with("AddMatch(") && calls[1].contains("JobRemoved"), "{calls:?}");
        assert_eq!(calls[2], "Subscribe()");
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_never_a_wait_for_ever() {
        for garbage in [b"garbage garbage garbage".to_vec(), {
            let mut long = assemble(METHOD_RETURN, 0, 1, vec![], &[]);
            long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
            long
        }] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("bus");
            let manager = serve(&path, move |_| vec![Answer::Garbage(garbage.clone())]);
            let mut bus = Bus::connect(&path, false, soon()).unwrap();
            assert!(bus.call(&call("Ask", &[]), soon()).is_err());
            drop(bus);
            manager.join().unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let manager = serve(&path, |_| vec![Answer::Silence]);
        let mut bus = Bus::connect(&path, false, soon()).unwrap();
        let error = bus.call(&call("Ask", &[]), Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.to_string(), "no answer in time");
        drop(bus);
        manager.join().unwrap();
    }
}
