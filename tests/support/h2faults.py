"""HTTP/2 servers that misbehave (RFC 9113), and one that takes its time, in frames made by hand.

Usage: h2faults.py ADDRESS CERTIFICATE KEY
Prints one line for each behaviour: its name and its port. Ends with its standard input.
"""

import socket
import ssl
import struct
import sys
import threading
import time

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
STATUS_200 = b"\x88"  # RFC 7541, appendix A, entry 8


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def again(what, first=b"", pause=0.0, rounds=10_000_000):
    def behave(peer):
        peer.sendall(first)
        # In large writes: what is tested is who reads them.
        many = what if pause else what * 1000
        for _ in range(rounds):
            peer.sendall(many)
            if pause:
                time.sleep(pause)
        time.sleep(30)

    return behave


OK = frame(HEADERS, END_HEADERS, 1, STATUS_200)
# A literal header without indexing, "x" with a value of 16 KiB (RFC 7541, section 6.2.2).
LONG = b"\x00\x01x\x7f\x81\x7f" + b"y" * 16384

BEHAVIOURS = {
    "settings flood": again(frame(SETTINGS, 0, 0)),
    "ping flood": again(frame(PING, 0, 0, b"12345678")),
    "empty data flood": again(frame(DATA, 0, 1), OK),
    "window update flood": again(frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 1)), OK),
    "continuation flood": again(frame(CONTINUATION, 0, 1, LONG[:16000]), frame(HEADERS, 0, 1, STATUS_200)),
    "endless headers": again(frame(HEADERS, END_HEADERS, 1, LONG), frame(HEADERS, END_HEADERS, 1, LONG * 8)),
    "drips data": again(frame(DATA, 0, 1, b"x"), OK, 0.05, 200),
    "resets the stream": again(b"", frame(RST_STREAM, 0, 1, struct.pack("!I", 2)), 1, 1),
    "goes away": again(b"", frame(GOAWAY, 0, 0, struct.pack("!II", 0, 11)), 1, 1),
    "opens streams itself": again(frame(HEADERS, END_HEADERS, 2, STATUS_200)),
    "answers a stream that nobody opened": again(frame(DATA, 0, 7, b"x")),
    "ignores the window": again(frame(DATA, 0, 1, b"x" * 16384), OK),
    "says nothing": again(b"", b"", 1, 10),
    # content-length: 100 (RFC 7541, appendix A, entry 28), five bytes of it, and a reset with NO_ERROR.
    "ends its body early": again(
        b"", frame(HEADERS, END_HEADERS, 1, STATUS_200 + b"\x0f\x0d\x03100") + frame(DATA, 0, 1, b"short") + frame(RST_STREAM, 0, 1, struct.pack("!I", 0)), 1, 1
    ),
}


def late_settings(peer):
    time.sleep(0.5)
    peer.sendall(SETTINGS_OF_SERVER)
    time.sleep(0.3)
    peer.sendall(frame(HEADERS, END_HEADERS | END_STREAM, 1, STATUS_200))
    time.sleep(2)


BEHAVIOURS["late settings"] = late_settings
SETTINGS_OF_SERVER = frame(SETTINGS, 0, 0) + frame(SETTINGS, 1, 0)


def serve(listener, context, behave):
    while True:
        plain, _ = listener.accept()

        def talk(plain=plain):
            try:
                peer = context.wrap_socket(plain, server_side=True)
                preface = b""
                while len(preface) < 24:
                    preface += peer.recv(24 - len(preface)) or sys.exit()
                if behave is not late_settings:
                    peer.sendall(SETTINGS_OF_SERVER)
                # Its request, whole enough.
                peer.recv(65536)
                time.sleep(0.05)
                behave(peer)
            except (OSError, ssl.SSLError):
                pass

        threading.Thread(target=talk, daemon=True).start()


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
context.set_alpn_protocols(["h2"])
for name, behave in BEHAVIOURS.items():
    listener = socket.create_server((sys.argv[1], 0))
    threading.Thread(target=serve, args=(listener, context, behave), daemon=True).start()
    print(name, listener.getsockname()[1], sep="\t", flush=True)
print("ready", flush=True)
sys.stdin.read()
