//! HTTP/3 (RFC 9114): QUIC by quinn, frames by h3. reqwest has it too, without phases and without a place to vet.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Buf;
use h3::error::{ConnectionError, StreamError};

use super::{
    FailureKind, HEADER_BYTES, Marks, Request, Response, Step, Version, absolute, alongside, body, bounded, h3_target,
    message,
};
use crate::policy::Permitted;
use crate::tls::{Tls, quic};

pub async fn exchange(
    tls: &Tls,
    open: &[Permitted],
    port: u16,
    host: &str,
    request: &Request,
    marks: &Arc<Marks>,
) -> Result<Response, Step> {
    if request.url.scheme() != "https" {
        return Err(Step(FailureKind::Invalid, "HTTP/3 needs an https URL".into()));
    }
    let target = h3_target(open)?;
    let remote = SocketAddr::new(target.address(), port);
    marks.trying(remote);
    let (endpoint, connection, facts) = quic(tls, target, port, host, "h3", request.verify_tls).await?;
    marks.connected(remote);
    marks.known_tls(facts.clone());
    let (mut driver, mut sender) = h3::client::builder()
        .max_field_section_size(HEADER_BYTES as u64)
        .build::<_, _, bytes::Bytes>(h3_quinn::Connection::new(connection))
        .await
        .map_err(|error: ConnectionError| receive(&error))?;
    let (head, ()) = message(request, absolute(&request.url)?, http::Version::HTTP_3).map(|_| ()).into_parts();
    let work = async {
        marks.asking();
        let asked = http::Request::from_parts(head, ());
        let mut stream = sender.send_request(asked).await.map_err(|error: StreamError| receive(&error))?;
        if let Some(data) = &request.body {
            stream.send_data(data.clone()).await.map_err(|error| receive(&error))?;
        }
        stream.finish().await.map_err(|error| receive(&error))?;
        marks.sent();
        let response = stream.recv_response().await.map_err(|error| receive(&error))?;
        marks.answering_now();
        let (head, ()) = response.into_parts();
        bounded(&head.headers)?;
        let mut taking = body::Taking::new(&head.headers, request.keep_body);
        while let Some(mut data) = stream.recv_data().await.map_err(|error| receive(&error))? {
            while data.has_remaining() {
                let piece = data.chunk().len();
                taking.add(data.chunk()).await?;
                data.advance(piece);
            }
        }
        marks.finished();
        Ok(Response {
            status: head.status.as_u16(),
            // HTTP/3 has no reason phrase (RFC 9114).
            reason: String::new(),
            version: Version::Http3,
            headers: head.headers,
            remote,
            timings: marks.timings(),
            tls: Some(facts),
            body: taking.end().await,
        })
    };
    let done = alongside(std::future::poll_fn(|cx| driver.poll_close(cx)), work).await;
    endpoint.close(0_u32.into(), b"");
    done
}

fn receive(error: &dyn std::fmt::Display) -> Step {
    Step(FailureKind::Receive, format!("Failure when receiving data from the peer: {error}"))
}
