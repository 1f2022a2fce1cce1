//! An HTTP/2 client (RFC 9113) that asks and reads nothing, or as little as a test wants.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const HEADERS: u8 = 1;
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

pub struct Client {
    pub stream: TcpStream,
    last: u32,
}

impl Client {
    /// Connects with the preface and settings; `window`: bytes that the server may send on each stream.
    pub fn connect(address: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(address).expect("connected");
        let mut client = Self { stream, last: 0 };
        client.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("written");
        // SETTINGS_INITIAL_WINDOW_SIZE.
        let settings = [&4_u16.to_be_bytes()[..], &window.to_be_bytes()].concat();
        assert!(client.frame(SETTINGS, 0, 0, &settings));
        assert!(client.frame(WINDOW_UPDATE, 0, 0, &(LARGEST_WINDOW - 65_535).to_be_bytes()));
        client
    }

    /// GET on the next stream. False when the server has closed the connection.
    pub fn get(&mut self, path: &str, secret: Option<&str>) -> bool {
        // RFC 7541: `:method: GET` and `:scheme: http` are entries 2 and 6 of the static table; the names of `:path`,
        // `:authority` and `authorization` are entries 4, 1 and 23, with literal values that are not indexed.
        let literal = |name: &[u8], value: &str| {
            assert!(value.len() < 127, "a length in one byte");
            [name, &[u8::try_from(value.len()).expect("short")], value.as_bytes()].concat()
        };
        let mut block = vec![0x82, 0x86];
        block.extend(literal(&[0x04], path));
        block.extend(literal(&[0x01], "x"));
        block.extend(secret.map(|secret| literal(&[0x0f, 8], secret)).unwrap_or_default());
        let stream = self.last * 2 + 1;
        self.last += 1;
        // END_STREAM and END_HEADERS.
        self.frame(HEADERS, 1 | 4, stream, &block)
    }

    /// Reads as many responses' heads, each on whatever stream it comes; how many of them say 200.
    pub fn ok_heads(&mut self, count: usize) -> usize {
        let mut heads = vec![];
        while heads.len() < count {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).expect("a frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).expect("short")];
            self.stream.read_exact(&mut payload).expect("its payload");
            if head[3] == HEADERS {
                heads.push(payload);
            }
        }
        // `:status: 200` is entry 8 of the static table, and the first field.
        heads.iter().filter(|head| head[0] == 0x88).count()
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.stream.write_all(&[&head[..], payload].concat()).is_ok()
    }
}
