//! DNS transports: UDP, TCP (RFC 7766), TLS (RFC 7858), HTTPS (RFC 8484) and QUIC (RFC 9250). Exchanges are timed; the
//! caller sets the timeout.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::message::Query;
use super::{AskError, bracketed};
use crate::limits::Frames;
use crate::metered::{Metered, Received};
use crate::packet::socket::{self, Timestamp};
use crate::policy::Permitted;
use crate::scope::ExchangeTasks;
use crate::tls::quic::{self, QuicConnection, QuicError};
use crate::tls::{Refused, Tls, admitted};

type Reply = Result<(Vec<u8>, Duration), AskError>;

/// The longest message over a stream or QUIC.
const MAX_MESSAGE: usize = 65_535;
/// Over a connection that carries one query.
const OTHER_RESPONSES: usize = 16;
/// More than the largest EDNS payload size that a query may advertise (4,096 bytes).
const UDP_BUFFER: usize = 8192;

/// Each query has a socket of its own: the random source port is half of what an off-path attacker must guess (RFC 5452).
/// Datagrams that do not answer the query are ignored.
pub async fn udp(server: Permitted, port: u16, query: &Query, meter: &Received) -> Reply {
    let io = |error: std::io::Error| AskError::from_io(&error);
    let errno = |error: nix::Error| AskError::from_io(&error.into());
    let domain = if server.address().is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).map_err(io)?;
    socket.set_nonblocking(true).map_err(io)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).map_err(errno)?;
    // Connected: the kernel delivers only what comes from that server, and ICMP port unreachable as an error.
    socket.connect(&server.socket_address(port).into()).map_err(io)?;
    let socket = socket::register(socket, Interest::READABLE | Interest::ERROR).map_err(io)?;
    let sent = Timestamp::now();
    socket.get_ref().send(&query.bytes).map_err(io)?;
    let (mut buffer, mut control) = (vec![0; UDP_BUFFER], socket::control_buffer());
    loop {
        // An ICMP port unreachable is an error of the socket, not data.
        let mut ready = socket.ready(Interest::READABLE | Interest::ERROR).await.map_err(io)?;
        match socket::receive(socket.get_ref(), MsgFlags::MSG_DONTWAIT, &mut buffer, &mut control) {
            Ok(received) => {
                // A server may send faster than this reads: other tasks of the thread get their turn.
                tokio::task::coop::consume_budget().await;
                let reply = &buffer[..received.length];
                meter.add(reply.len());
                if query.accepts(reply) {
                    return Ok((reply.to_vec(), sent.elapsed_until(received.timestamp)));
                }
            }
            Err(nix::Error::EAGAIN) => ready.clear_ready(),
            Err(error) => return Err(errno(error)),
        }
    }
}

/// A connection whose bytes are counted.
type Stream = Metered<TcpStream, Received>;

async fn connect(server: Permitted, port: u16, received: &Received) -> Result<Stream, AskError> {
    let connected = async {
        let stream = TcpStream::connect(server.socket_address(port)).await?;
        stream.set_nodelay(true)?;
        Ok(Metered::new(stream, received.clone()))
    };
    connected.await.map_err(|error: std::io::Error| AskError::from_io(&error))
}

/// The connection, and how long this host took to verify the certificate.
async fn secure(tls: &Tls, stream: Stream, name: &str, alpn: &str) -> Result<(TlsStream<Stream>, Duration), AskError> {
    let (config, presented) = tls.client(&[alpn]).map_err(|e| AskError::Insecure(e.to_string()))?;
    let name = ServerName::try_from(name.to_owned()).map_err(|e| AskError::Insecure(e.to_string()))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    match admitted(connected, presented.verify().await, true) {
        Ok((stream, details)) => Ok((stream, details.verification)),
        Err(Refused::Certificate(reason)) => Err(AskError::Insecure(reason)),
        Err(Refused::Handshake(error)) => Err(AskError::Insecure(format!("TLS handshake failed: {error}"))),
    }
}

/// Messages with a length field of two bytes (RFC 7766, section 8). Responses to other queries are ignored, up to a limit:
/// only the server can have sent them.
async fn framed(mut stream: impl AsyncRead + AsyncWrite + Unpin, query: &Query) -> Result<Vec<u8>, AskError> {
    let exchange = async {
        let length = u16::try_from(query.bytes.len()).unwrap_or(u16::MAX);
        stream.write_all(&[&length.to_be_bytes(), query.bytes.as_slice()].concat()).await?;
        for _ in 0..=OTHER_RESPONSES {
            let length = stream.read_u16().await?;
            let mut reply = vec![0; length.into()];
            stream.read_exact(&mut reply).await?;
            if query.accepts(&reply) {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    };
    let answer = exchange.await.map_err(|error: std::io::Error| AskError::from_io(&error))?;
    answer.ok_or_else(|| AskError::Malformed(format!("more than {OTHER_RESPONSES} answers to other questions")))
}

pub async fn tcp(server: Permitted, port: u16, query: &Query, received: &Received) -> Reply {
    let start = Instant::now();
    let reply = framed(connect(server, port, received).await?, query).await?;
    Ok((reply, start.elapsed()))
}

pub async fn tls(tls: &Tls, server: Permitted, port: u16, name: &str, query: &Query, received: &Received) -> Reply {
    let start = Instant::now();
    let stream = connect(server, port, received).await?;
    let (stream, verification) = secure(tls, stream, name, "dot").await?;
    let reply = framed(stream, query).await?;
    Ok((reply, start.elapsed().saturating_sub(verification)))
}

pub async fn https(tls: &Tls, server: Permitted, port: u16, name: &str, query: &Query, received: &Received) -> Reply {
    let start = Instant::now();
    let (stream, verification) = secure(tls, connect(server, port, received).await?, name, "h2").await?;
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let url = format!("https://{}{port}/dns-query", bracketed(name));
    Ok((over_h2(stream, &url, query).await?, start.elapsed().saturating_sub(verification)))
}

/// RFC 8484, section 4.1, over an established connection. h2 handles as many frames as a server sends: they are
/// counted.
async fn over_h2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &str,
    query: &Query,
) -> Result<Vec<u8>, AskError> {
    let malformed = |error: &dyn std::fmt::Display| AskError::Malformed(format!("DNS over HTTPS: {error}"));
    let failed = |error: hyper::Error| malformed(&cause(&error));
    let (tied, _end) = ExchangeTasks::new();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(tied)
        .handshake(TokioIo::new(Metered::new(stream, Frames::default())))
        .await
        .map_err(failed)?;
    let request = http::Request::post(url)
        .header("content-type", "application/dns-message")
        .header("accept", "application/dns-message")
        .body(Full::new(Bytes::from(query.without_id())))
        .map_err(|e| malformed(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != http::StatusCode::OK {
            return Err(malformed(&format!("status {}", response.status())));
        }
        let body = Limited::new(response.into_body(), MAX_MESSAGE).collect().await;
        let body = body.map_err(|error| malformed(&cause(&*error)))?;
        Ok(body.to_bytes().to_vec())
    };
    let (mut connection, mut exchange) = (std::pin::pin!(connection), std::pin::pin!(exchange));
    tokio::select! {
        biased;
        done = &mut exchange => done,
        _ = &mut connection => exchange.await,
    }
}

/// The first cause of an error.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.by_ref().last().unwrap_or(error).to_string()
}

pub async fn quic(tls: &Tls, server: Permitted, port: u16, name: &str, query: &Query, received: &Received) -> Reply {
    let start = Instant::now();
    let (_, connected) = quic::verified(quic::handshake(tls, server, port, name, "doq").await, true).await;
    let QuicConnection { endpoint, connection, details } = connected.map_err(|error| match error {
        QuicError::Connect(message) => AskError::Unreachable(message),
        QuicError::Host(error) => AskError::from_io(&error),
        QuicError::Certificate(message) | QuicError::Handshake(message) => AskError::Insecure(message),
    })?;
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        let message = query.without_id();
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        send.write_all(&[&length.to_be_bytes(), message.as_slice()].concat()).await?;
        send.finish()?;
        Ok(receive.read_to_end(MAX_MESSAGE + 2).await?)
    };
    let counted = Datagrams { connection: &connection, received };
    let bytes = exchange.await.map_err(|error: Box<dyn std::error::Error + Send + Sync>| {
        AskError::Malformed(format!("DNS over QUIC: {error}"))
    })?;
    let elapsed = start.elapsed().saturating_sub(details.verification);
    drop(counted);
    connection.close(0_u32.into(), b"");
    drop(endpoint);
    // With a length field of two bytes (RFC 9250, section 4.2).
    match bytes.split_first_chunk() {
        Some((length, message)) if message.len() == usize::from(u16::from_be_bytes(*length)) => {
            Ok((message.to_vec(), elapsed))
        }
        _ => Err(AskError::Malformed("the answer's length is not what it says".into())),
    }
}

/// Counts what came over a QUIC connection, also when no caller waits for an answer any more.
struct Datagrams<'a> {
    connection: &'a quinn::Connection,
    received: &'a Received,
}

impl Drop for Datagrams<'_> {
    fn drop(&mut self) {
        self.received.add(usize::try_from(self.connection.stats().udp_rx.bytes).unwrap_or(usize::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Question;
    use super::*;

    fn query() -> Query {
        Query::of(&Question { name: "a.example".into(), rtype: "A".into(), class: "IN".into() }).expect("a query")
    }

    /// The other end of a connection, which writes this for as long as it is read.
    fn flood(first: &'static [u8], again: Vec<u8>) -> tokio::io::DuplexStream {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move {
            let _ = theirs.write_all(first).await;
            while theirs.write_all(&again).await.is_ok() {}
        });
        ours
    }

    #[tokio::test]
    async fn frames_of_http_2_are_counted() {
        // SETTINGS, then PING frames with 8 bytes of data (RFC 9113, section 6.7).
        let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat();
        let pings = flood(&[0, 0, 0, 4, 0, 0, 0, 0, 0], ping.repeat(1000));
        let asked = tokio::time::timeout(Duration::from_secs(20), over_h2(pings, "https://a.example/", &query())).await;
        let error = asked.expect("it ends by itself").expect_err("a flood").to_string();
        assert!(error.contains("HTTP/2 frames that carry neither headers nor a body"), "{error}");
    }

    #[tokio::test]
    async fn answers_to_other_questions_are_few() {
        let mut other = query().bytes;
        other[2] |= 0x80;
        let length = u16::try_from(other.len()).expect("short").to_be_bytes();
        let answers = flood(&[], [&length, other.as_slice()].concat());
        let asked = tokio::time::timeout(Duration::from_secs(20), framed(answers, &query())).await;
        let error = asked.expect("it ends by itself").expect_err("a flood").to_string();
        assert!(error.contains("answers to other questions"), "{error}");
    }
}
