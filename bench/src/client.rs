//! The load generator: connections that stay, one request under way on each, one thread for all. It is as light as it
//! can be, because it shares the cores with what it measures; peers get the same one.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stats::percentile;
use crate::support::lab::Namespace;

/// What is asked, of whom.
#[derive(Clone)]
pub struct Request {
    pub address: SocketAddr,
    /// The whole request, head and body.
    pub bytes: Arc<[u8]>,
    pub good: Good,
}

/// What an answer must say to count, besides 200.
#[derive(Clone, Copy)]
pub struct Good {
    pub has: &'static str,
    pub has_not: &'static str,
}

/// A finished test that did not fail, in the API's JSON.
pub const TEST: Good = Good { has: "\"failed\":false", has_not: "\"failed\":true" };
/// The same of `blackbox_exporter`.
pub const PROBE: Good = Good { has: "\nprobe_success 1\n", has_not: "\nprobe_success 0\n" };
/// Any answer.
pub const ANY: Good = Good { has: "", has_not: "\0" };

impl Request {
    pub fn get(address: SocketAddr, path: &str, good: Good) -> Self {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        Self { address, bytes: head.into_bytes().into(), good }
    }

    pub fn post(address: SocketAddr, path: &str, secret: &str, body: &str, good: Good) -> Self {
        let length = body.len();
        let text = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {secret}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        Self { address, bytes: text.into_bytes().into(), good }
    }
}

/// What came back.
#[derive(Debug, Default)]
pub struct Answers {
    /// Milliseconds from request to whole answer, of each good one.
    pub latencies: Vec<f64>,
    pub bad: usize,
    /// The first answer that was not good.
    pub complaint: Option<String>,
    /// From the first request to the last answer.
    pub seconds: f64,
}

impl Answers {
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    pub fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }

    pub fn latency(&self, percent: usize) -> f64 {
        percentile(&self.latencies, percent)
    }
}

/// Sends requests from inside a namespace, so many at once, until the time is up; every connection sends one at least.
pub fn load(namespace: &Namespace, request: &Request, at_once: usize, time: Duration) -> Answers {
    namespace.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(request, at_once, time))
    })
}

async fn run(request: &Request, at_once: usize, time: Duration) -> Answers {
    let mut streams = vec![];
    for _ in 0..at_once {
        let stream = TcpStream::connect(request.address).await.expect("connected");
        stream.set_nodelay(true).expect("set");
        streams.push(stream);
    }
    let started = Instant::now();
    let clients: Vec<_> =
        streams.into_iter().map(|stream| tokio::spawn(client(stream, request.clone(), started + time))).collect();
    let mut all = Answers::default();
    for client in clients {
        let answers = client.await.expect("a client ends");
        all.latencies.extend(answers.latencies);
        all.bad += answers.bad;
        all.complaint = all.complaint.or(answers.complaint);
    }
    all.seconds = started.elapsed().as_secs_f64();
    all
}

async fn client(mut stream: TcpStream, request: Request, end: Instant) -> Answers {
    let mut answers = Answers::default();
    let mut buffer = Vec::with_capacity(16 << 10);
    loop {
        let asked = Instant::now();
        stream.write_all(&request.bytes).await.expect("written");
        buffer.clear();
        while !is_whole(&buffer) {
            assert!(stream.read_buf(&mut buffer).await.expect("an answer") > 0, "the server closed a connection");
        }
        if is_good(&buffer, request.good) {
            answers.latencies.push(asked.elapsed().as_secs_f64() * 1e3);
        } else {
            answers.bad += 1;
            answers.complaint.get_or_insert_with(|| String::from_utf8_lossy(&buffer).into_owned());
        }
        if Instant::now() >= end {
            return answers;
        }
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    if part.is_empty() { Some(0) } else { bytes.windows(part.len()).position(|window| window == part) }
}

/// Head in lower case, and body, of an HTTP/1.1 answer whose head is there to its end.
fn parts(answer: &[u8]) -> Option<(String, &[u8])> {
    let end = find(answer, b"\r\n\r\n")?;
    Some((String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase(), &answer[end + 4..]))
}

fn is_chunked(head: &str) -> bool {
    head.contains("\r\ntransfer-encoding: chunked")
}

/// Whether an answer is there to its end, by its length or its last chunk. No client here sends a second request before
/// that, so that nothing follows.
fn is_whole(answer: &[u8]) -> bool {
    let Some((head, body)) = parts(answer) else { return false };
    match head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok()) {
        Some(length) => body.len() >= length,
        None if is_chunked(&head) => body == b"0\r\n\r\n" || body.ends_with(b"\r\n0\r\n\r\n"),
        None => true,
    }
}

fn is_good(answer: &[u8], good: Good) -> bool {
    let Some((head, body)) = parts(answer) else { return false };
    let body = if is_chunked(&head) { Cow::Owned(joined(body)) } else { Cow::Borrowed(body) };
    let has = |part: &str| find(&body, part.as_bytes()).is_some();
    answer.starts_with(b"HTTP/1.1 200 ") && has(good.has) && !has(good.has_not)
}

/// The chunks of a body, which may be cut anywhere.
fn joined(mut body: &[u8]) -> Vec<u8> {
    let mut whole = vec![];
    while let Some(end) = find(body, b"\r\n") {
        let length = std::str::from_utf8(&body[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let Some(chunk) = length.and_then(|length| body.get(end + 2..end + 2 + length)) else { break };
        whole.extend_from_slice(chunk);
        body = body.get(end + 4 + chunk.len()..).unwrap_or_default();
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_at_its_length_or_last_chunk() {
        let whole = [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        ];
        for answer in whole {
            for end in 0..answer.len() {
                assert!(!is_whole(&answer.as_bytes()[..end]), "{end} bytes of {answer:?}");
            }
            assert!(is_whole(answer.as_bytes()), "{answer:?}");
        }
    }

    #[test]
    fn words_are_found_across_chunks() {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\np\n\r\n6\r\nprobe_\r\na\r\nsuccess 1\n\r\n0\r\n\r\n";
        assert!(is_whole(answer) && is_good(answer, Good { has: "\nprobe_success 1\n", has_not: "\0" }));
        assert!(!is_good(answer, Good { has: "\r\n", has_not: "\0" }), "what is between chunks is not the body");
    }

    #[test]
    fn only_200_with_the_right_words_counts() {
        assert!(is_good(b"HTTP/1.1 200 OK\r\n\r\n\"failed\":false", TEST));
        assert!(!is_good(b"HTTP/1.1 200 OK\r\n\r\n\"failed\":false, \"failed\":true", TEST));
        assert!(!is_good(b"HTTP/1.1 429 Too Many\r\n\r\n\"failed\":false", TEST));
        assert!(is_good(b"HTTP/1.1 200 OK\r\n\r\n# HELP\nprobe_success 1\n", PROBE));
        assert!(!is_good(b"HTTP/1.1 200 OK\r\n\r\n# HELP\nprobe_success 0\n", PROBE));
        assert!(is_good(b"HTTP/1.1 200 OK\r\n\r\n", ANY) && !is_good(b"HTTP/1.1 500 Oh\r\n\r\n", ANY));
    }
}
