"""TLS servers with odd certificates.

Usage: oddcerts.py ADDRESS FOLDER
Prints one line for each certificate: its name and its port. Ends with its standard input.
"""

import datetime
import pathlib
import socket
import ssl
import sys
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(name="www.lab.test", sans=("www.lab.test",), start=NOW - DAY, end=NOW + DAY, more=()):
    subject = x509.Name([*([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []), *more])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(KEY.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
    if sans:
        names = [san if isinstance(san, x509.GeneralName) else x509.DNSName(san) for san in sans]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256())


MANY = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"unit {number}") for number in range(500)]
CHAINS = {
    "nul in its name": [certificate("www.lab.test\0.evil.test")],
    "control characters": [certificate("\x1b[31mred\r\nforged: header")],
    "no name at all": [certificate("", sans=())],
    "two thousand names": [certificate(sans=[f"n{number}.lab.test" for number in range(2000)])],
    "every kind of name": [
        certificate(
            sans=[
                x509.RFC822Name("a@lab.test"),
                x509.UniformResourceIdentifier("http://lab.test/\u0001"),
                x509.IPAddress(__import__("ipaddress").ip_address("10.77.0.8")),
                x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4.5.6.7.8.9.10")),
                x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d")])),
            ]
        )
    ],
    "a long subject": [certificate(more=MANY)],
    "not yet valid": [certificate(start=NOW + DAY, end=NOW + 2 * DAY)],
    "the year 9999": [certificate(end=datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.timezone.utc))],
    "a chain of forty": [certificate(f"link {number}") for number in range(40)],
    "a chain of 200 kB": [certificate(more=MANY) for _ in range(12)],
}


def serve(listener, context):
    while True:
        plain, _ = listener.accept()

        def talk(plain=plain):
            try:
                peer = context.wrap_socket(plain, server_side=True)
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                peer.close()
            except (OSError, ssl.SSLError):
                pass

        threading.Thread(target=talk, daemon=True).start()


folder = pathlib.Path(sys.argv[2])
key = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
for number, (name, chain) in enumerate(CHAINS.items()):
    file = folder / f"odd{number}.pem"
    file.write_bytes(key + b"".join(link.public_bytes(serialization.Encoding.PEM) for link in chain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    listener = socket.create_server((sys.argv[1], 0))
    threading.Thread(target=serve, args=(listener, context), daemon=True).start()
    print(name, listener.getsockname()[1], sep="\t", flush=True)
print("ready", flush=True)
sys.stdin.read()
