"""HTTP/3 servers that misbehave (RFC 9114), in frames made by hand.

Usage: h3faults.py ADDRESS CERTIFICATE KEY
Prints one line for each behaviour: its name and its port. Ends with its standard input.
"""

import asyncio
import socket
import sys

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StreamDataReceived

# HEADERS with one indexed field of the static table (RFC 9204, appendix A).
HINTS, OK = b"\x01\x03\x00\x00\xd8", b"\x01\x03\x00\x00\xd9"
EMPTY, BYTE = b"\x00\x00", b"\x00\x01x"

BEHAVIOURS = {
    "two interim responses": HINTS * 2 + OK + BYTE * 2,
    "empty DATA frames": OK + EMPTY * 3 + BYTE + EMPTY * 3 + BYTE,
    "interim responses flood": HINTS * 10_000,
    "bytes flood": OK + BYTE * 50_000,
    "empty DATA frames flood": OK + EMPTY * 50_000,
    # 16 MiB are announced, and some of them come.
    "an endless unknown frame": OK + b"\x21\x81\x00\x00\x00" + bytes(3 << 20),
    # content-length: 100 as a literal with a name of the static table, entry 4 (RFC 9204, section 4.5.4).
    "ends its body early": b"\x01\x08\x00\x00\xd9\x54\x03100" + BYTE * 2,
    "unknown frames flood": OK + b"\x21\x00" * 100_000 + BYTE * 2,
}


def protocol(answer):
    class Server(QuicConnectionProtocol):
        def quic_event_received(self, event):
            if isinstance(event, StreamDataReceived) and event.stream_id == 0 and event.end_stream:
                control = self._quic.get_next_available_stream_id(is_unidirectional=True)
                self._quic.send_stream_data(control, b"\x00\x04\x00")
                self._quic.send_stream_data(0, answer, end_stream=True)
                self.transmit()

    return Server


async def main():
    for name, answer in BEHAVIOURS.items():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind((sys.argv[1], 0))
            port = free.getsockname()[1]
        configuration = QuicConfiguration(alpn_protocols=["h3"], is_client=False)
        configuration.load_cert_chain(sys.argv[2], sys.argv[3])
        await serve(sys.argv[1], port, configuration=configuration, create_protocol=protocol(answer))
        print(name, port, sep="\t", flush=True)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
