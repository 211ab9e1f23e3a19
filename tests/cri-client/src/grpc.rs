//! One gRPC call over a unix socket: an HTTP/2 request whose body and answer are messages with a length.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use tokio::net::UnixStream;

/// The flag and the length before each message.
const PREFIX: usize = 5;

/// Calls `path` with one message, and gives each message of the answer to `each` as it comes.
pub async fn call(
    socket: &Path,
    path: &str,
    message: &[u8],
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let stream = UnixStream::connect(socket).await.with_context(|| socket.display().to_string())?;
    let (mut client, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://localhost/{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (answer, mut body) = client.send_request(request, false)?;
    body.send_data(framed(message)?, true)?;
    let (head, mut body) = answer.await?.into_parts();
    ensure!(head.status == http::StatusCode::OK, "{path}: HTTP status {}", head.status);
    let mut pending = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        pending.extend_from_slice(&chunk);
        while let Some(message) = first_message(&mut pending) {
            each(&message)?;
        }
    }
    // an answer without messages has its status in front
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    status(&trailers)
}

fn framed(message: &[u8]) -> Result<Bytes> {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0); // not compressed
    frame.put_u32(u32::try_from(message.len())?);
    frame.put_slice(message);
    Ok(frame.freeze())
}

/// Takes the first message when all of it is there.
fn first_message(pending: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(pending.get(1..PREFIX)?.try_into().ok()?) as usize;
    if pending.len() < PREFIX + length {
        return None;
    }
    pending.advance(PREFIX);
    Some(pending.split_to(length).freeze())
}

fn status(trailers: &HeaderMap) -> Result<()> {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").context("an answer without a status")? {
        "0" => Ok(()),
        code => bail!("gRPC status {code}: {}", plain(text("grpc-message").unwrap_or_default())),
    }
}

/// Without the percent signs that stand for other characters.
fn plain(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.filter(|_| first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_where_their_length_says() {
        let mut pending = BytesMut::new();
        pending.extend_from_slice(&framed(b"one").unwrap());
        pending.extend_from_slice(&framed(b"").unwrap());
        pending.extend_from_slice(&framed(b"three").unwrap()[..6]);
        assert_eq!(first_message(&mut pending).as_deref(), Some(&b"one"[..]));
        assert_eq!(first_message(&mut pending).as_deref(), Some(&b""[..]));
        assert_eq!(first_message(&mut pending), None);
        pending.extend_from_slice(b"hree");
        assert_eq!(first_message(&mut pending).as_deref(), Some(&b"three"[..]));
    }

    #[test]
    fn error_messages_are_readable() {
        assert_eq!(plain("a%20b%C3%A9 100%"), "a bé 100%");
    }
}
