//! Web pages: one that nginx serves, and a server whose every path is another way to behave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::lab::Lab;

/// A page with one of everything, by file.
pub const PAGE: [(&str, &str); 7] = [
    (
        "index.html",
        r#"<!doctype html><html lang=en><title>Lab</title><link rel=stylesheet href=style.css><link rel=icon href=icon.svg>
<script src=script.js></script><h1>The lab's page</h1><img src=picture.svg alt=picture><iframe src=frame.html></iframe>
<img src=missing.svg alt=none><script>console.warn("from the page"); fetch("data.json").then(r => r.json());</script>"#,
    ),
    ("style.css", "h1 { color: teal; font-size: 60px; }\n"),
    ("script.js", "window.answer = 42;\n"),
    (
        "picture.svg",
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="200" height="100"><rect width="200" height="100"/></svg>"#,
    ),
    (
        "icon.svg",
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16"><rect width="9" height="9"/></svg>"#,
    ),
    ("frame.html", "<!doctype html><title>Frame</title><p>inside"),
    ("data.json", "{\"some\": \"data\"}\n"),
];

/// What a path answers.
pub enum Reply {
    /// An HTML page.
    Html(String),
    /// Bytes, then the end.
    Raw(Vec<u8>),
    /// A head and a body that never ends, as fast as it goes.
    Flood,
    /// Bytes, and no end until the client goes.
    Stream(Vec<u8>),
    /// The handshake of a websocket (RFC 6455, section 4.2.2), and no message.
    WebSocket,
    /// Nothing, for a long time.
    Silence,
    /// A reset connection.
    Reset,
}

/// A server at 10.77.0.8, and the heads of all requests that it got.
pub struct Site {
    pub port: u16,
    pub heads: Arc<Mutex<Vec<String>>>,
}

impl Site {
    pub fn new(lab: &Lab, answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = lab.target.inside(|| TcpListener::bind("10.77.0.8:0").expect("bound"));
        let port = listener.local_addr().expect("an address").port();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, answer) = (Arc::clone(&heads), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
                    serve(stream, &log, &*answer);
                });
            }
        });
        Self { port, heads }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://10.77.0.8:{}{path}", self.port)
    }

    /// The paths that were asked for.
    pub fn paths(&self) -> Vec<String> {
        let heads = self.heads.lock().unwrap();
        heads.iter().filter_map(|head| Some(head.split(' ').nth(1)?.to_owned())).collect()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<String>>, answer: &dyn Fn(&str) -> Reply) {
    let Ok(reader) = stream.try_clone() else { return };
    let (mut reader, mut head) = (BufReader::new(reader), vec![]);
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(reader.read_until(b'\n', &mut head), Ok(1..)) {
            return;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap_or_default().to_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap().push(head);
    match answer(&path) {
        Reply::Html(text) => {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                text.len()
            );
            let _ = stream.write_all(&[head.as_bytes(), text.as_bytes()].concat());
        }
        Reply::Raw(bytes) => {
            let _ = stream.write_all(&bytes);
        }
        Reply::Flood => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>");
            let much = vec![b'x'; 65_536];
            while stream.write_all(&much).is_ok() {}
        }
        Reply::Stream(bytes) => {
            let _ = stream.write_all(&bytes);
            let _ = reader.read_to_end(&mut vec![]);
        }
        Reply::WebSocket => {
            let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            let _ = write!(
                stream,
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            let _ = reader.read_to_end(&mut vec![]);
        }
        Reply::Silence => std::thread::sleep(Duration::from_secs(30)),
        Reply::Reset => {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// A whole response.
pub fn response(status: &str, headers: &str, body: &str) -> Reply {
    Reply::Raw(format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n{body}").into_bytes())
}
