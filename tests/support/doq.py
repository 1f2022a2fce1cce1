"""DNS over QUIC (RFC 9250) in front of a DNS server: an implementation that is not ours, to test against.

Usage: doq.py ADDRESS PORT CERTIFICATE KEY UPSTREAM
"""

import asyncio
import socket
import struct
import sys

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StreamDataReceived


class DnsOverQuic(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.streams = {}

    def quic_event_received(self, event):
        if not isinstance(event, StreamDataReceived):
            return
        data = self.streams.pop(event.stream_id, b"") + event.data
        if not event.end_stream:
            self.streams[event.stream_id] = data
            return
        (length,) = struct.unpack("!H", data[:2])
        question = data[2:]
        # RFC 9250, section 4.2.1: the identifier must be 0.
        if length != len(question) or question[:2] != b"\0\0":
            self._quic.close(error_code=2)
            return
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
            upstream.settimeout(2)
            upstream.sendto(question, (sys.argv[5], 53))
            answer = upstream.recv(65535)
        self._quic.send_stream_data(event.stream_id, struct.pack("!H", len(answer)) + answer, end_stream=True)
        self.transmit()


async def main():
    configuration = QuicConfiguration(alpn_protocols=["doq"], is_client=False)
    configuration.load_cert_chain(sys.argv[3], sys.argv[4])
    await serve(sys.argv[1], int(sys.argv[2]), configuration=configuration, create_protocol=DnsOverQuic)
    print("ready", flush=True)
    await asyncio.Future()


asyncio.run(main())
