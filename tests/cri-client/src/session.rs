//! The session of `Exec` and `Attach`: a web socket on which the first byte of each message is its channel
//! (`v4.channel.k8s.io`).

use std::io::Write;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// How the process ended.
const STATUS: u8 = 3;
const SIZE: u8 = 4;

/// The address of the session when an answer holds one.
pub fn url(answer: &str) -> Option<String> {
    let answer: Value = serde_json::from_str(answer).ok()?;
    Some(answer.get("url")?.as_str()?.to_owned())
}

/// Carries stdin, stdout, stderr and sizes until the server ends. Gives the exit code that it tells.
pub async fn play(url: &str, sizes: Option<&str>) -> Result<u8> {
    let address = url.strip_prefix("http://").with_context(|| format!("not an http address: {url}"))?;
    let host = address.split('/').next().unwrap_or_default();
    let mut request = format!("ws://{address}").into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", "v4.channel.k8s.io".parse()?);
    let stream = TcpStream::connect(host).await.with_context(|| host.to_owned())?;
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    let (mut sender, mut receiver) = socket.split();

    let mut input = tokio::io::stdin();
    let mut open = true;
    let mut buffer = [0; 4096];
    let mut sizes = match sizes {
        Some(path) => {
            Some(BufReader::new(tokio::fs::File::open(path).await.context(path.to_owned())?).lines())
        }
        None => None,
    };
    let mut status = None;
    loop {
        tokio::select! {
            message = receiver.next() => match message {
                Some(Ok(Message::Binary(bytes))) => match bytes.split_first() {
                    Some((&STDOUT, text)) => show(&mut std::io::stdout(), text)?,
                    Some((&STDERR, text)) => show(&mut std::io::stderr(), text)?,
                    Some((&STATUS, text)) => status = Some(exit_code(text)?),
                    _ => {}
                },
                Some(Ok(Message::Close(_))) | None => break,
                Some(Ok(_)) => {}
                // the server closes without a word once all has been said
                Some(Err(_)) if status.is_some() => break,
                Some(Err(error)) => return Err(error).context("the session"),
            },
            count = input.read(&mut buffer), if open => {
                let text = buffer.get(..count?).unwrap_or_default();
                // the end of the input cannot be told on this protocol
                open = !text.is_empty();
                if open {
                    sender.send(on(STDIN, text)).await?;
                }
            },
            line = next_line(&mut sizes) => {
                let line = line?;
                let (columns, rows) = line.split_once('x').with_context(|| format!("not COLUMNSxROWS: {line}"))?;
                let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
                sender.send(on(SIZE, size.as_bytes())).await?;
            },
        }
    }
    Ok(status.unwrap_or(0))
}

fn on(channel: u8, text: &[u8]) -> Message {
    Message::Binary(Bytes::from([&[channel], text].concat()))
}

fn show(to: &mut impl Write, text: &[u8]) -> Result<()> {
    to.write_all(text)?;
    Ok(to.flush()?)
}

/// The next line; without a file, or after its end, there never is one.
async fn next_line(lines: &mut Option<tokio::io::Lines<BufReader<tokio::fs::File>>>) -> Result<String> {
    if let Some(lines) = lines
        && let Some(line) = lines.next_line().await?
    {
        return Ok(line);
    }
    std::future::pending().await
}

/// What a Kubernetes status says of the process.
fn exit_code(text: &[u8]) -> Result<u8> {
    let status: Value = serde_json::from_slice(text).context("the session's status")?;
    if status.get("status").and_then(Value::as_str) == Some("Success") {
        return Ok(0);
    }
    let causes = status.pointer("/details/causes").and_then(Value::as_array);
    let code =
        causes.into_iter().flatten().find(|cause| cause.get("reason").is_some_and(|why| why == "ExitCode"));
    match code.and_then(|cause| cause.get("message")?.as_str()) {
        Some(code) => Ok(code.parse()?),
        None => bail!("the session failed: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_the_exit_code() {
        assert_eq!(exit_code(br#"{"status":"Success"}"#).unwrap(), 0);
        let failure = br#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        assert_eq!(exit_code(failure).unwrap(), 3);
        assert!(exit_code(br#"{"status":"Failure","message":"no such command"}"#).is_err());
    }
}
