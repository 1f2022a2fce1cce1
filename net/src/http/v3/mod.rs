//! HTTP/3 (RFC 9114): QUIC by quinn, frames by h3. reqwest has it too, without phases and without a place to vet.

mod turns;

use std::sync::Arc;

use bytes::Buf;
use h3::error::{ConnectionError, StreamError};

use self::turns::Turns;
use super::body::BodyReader;
use super::timeline::Timeline;
use super::{
    FailureKind, Head, Request, Response, StepError, Version, absolute, alongside, begin, ended, message, no_address,
    receive_error,
};
use crate::address::dial;
use crate::limits::{Exceeded, HEADER_BYTES, PIECES_OF_HTTP_3, Pieces};
use crate::policy::Permitted;
use crate::tls::Tls;
use crate::tls::quic::{self, QuicConnection};

/// h3 says that a body ended when it comes to an empty DATA frame, and again whenever it is asked after the end.
const EMPTY_FRAMES: u32 = 32;

pub async fn exchange(
    tls: &Tls,
    open: &[Permitted],
    port: u16,
    host: &str,
    request: &Request,
    timeline: &Arc<Timeline>,
) -> Result<Response, StepError> {
    if request.url.scheme() != "https" {
        return Err(StepError(FailureKind::Invalid, "HTTP/3 needs an https URL".into()));
    }
    timeline.connecting();
    let connect = |target| quic::handshake(tls, target, port, host, "h3");
    let (handshake, remote) = match dial::race(open, port, timeline.attempts(), connect).await {
        Ok((handshake, remote)) => (Ok(handshake), remote),
        Err(Some((failed, remote))) => (Err(failed), remote),
        Err(None) => return Err(no_address()),
    };
    let (details, connected) = quic::verified(handshake, request.verify_tls).await;
    if let Some(details) = &details {
        timeline.negotiated(details);
    }
    let QuicConnection { endpoint, connection, details } = connected?;
    timeline.quic(&connection);
    let turns = Turns::new(timeline);
    let done = turns.drive(over(h3_quinn::Connection::new(connection), &turns, request, timeline)).await;
    endpoint.close(0_u32.into(), b"");
    ended(done?, request, timeline, remote, Some(details)).await
}

/// The request and its response, over an established connection.
async fn over(
    connection: h3_quinn::Connection,
    turns: &Turns,
    request: &Request,
    timeline: &Timeline,
) -> Result<BodyReader, StepError> {
    let failed = |error: &StreamError| stream_error(error, timeline);
    let (mut driver, mut sender) = h3::client::builder()
        .max_field_section_size(HEADER_BYTES as u64)
        .build::<_, _, bytes::Bytes>(turns.of(connection))
        .await
        .map_err(|error: ConnectionError| receive_error(&error))?;
    let (head, ()) = message(request, absolute(&request.url)?, http::Version::HTTP_3).map(|_| ()).into_parts();
    let work = async {
        timeline.request_started();
        let head = http::Request::from_parts(head, ());
        let mut stream = sender.send_request(head).await.map_err(|error| failed(&error))?;
        if let Some(data) = &request.body {
            stream.send_data(data.clone()).await.map_err(|error| failed(&error))?;
        }
        stream.finish().await.map_err(|error| failed(&error))?;
        timeline.request_ended();
        // h3 gives interim responses like final ones.
        let response = loop {
            let response = stream.recv_response().await.map_err(|error| failed(&error))?;
            if !response.status().is_informational() {
                break response;
            }
            timeline.interim_response(response.headers());
            if let Some(exceeded) = timeline.exceeded() {
                return Err(exceeded.into());
            }
        };
        timeline.response_started_now();
        let (head, ()) = response.into_parts();
        let (status, headers) = (head.status.as_u16(), head.headers);
        let head = Head { status, reason: String::new(), version: Version::Http3, headers };
        let mut body = begin(head, request, timeline, Pieces::at_most(PIECES_OF_HTTP_3))?;
        let mut empty = 0;
        while empty < EMPTY_FRAMES {
            let Some(mut data) = stream.recv_data().await.map_err(|error| failed(&error))? else {
                empty += 1;
                continue;
            };
            empty = 0;
            while data.has_remaining() {
                let piece = data.chunk().len();
                turns.took_body(piece);
                timeline.body(piece);
                if body.add(data.chunk()).await?.is_break() {
                    timeline.response_ended();
                    return Ok(body);
                }
                data.advance(piece);
            }
        }
        // At the end of the stream there is nothing else; what is left otherwise are more empty frames.
        stream.recv_trailers().await.map_err(|error| failed(&error))?;
        timeline.response_ended();
        Ok(body)
    };
    alongside(std::future::poll_fn(|cx| driver.poll_close(cx)), work).await
}

fn stream_error(error: &StreamError, timeline: &Timeline) -> StepError {
    match (timeline.exceeded(), error) {
        (Some(exceeded), _) => exceeded.into(),
        (None, StreamError::HeaderTooBig { .. }) => Exceeded::Headers.into(),
        (None, other) => receive_error(other),
    }
}
