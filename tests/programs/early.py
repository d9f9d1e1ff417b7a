"""Interim responses (1xx) that come before their final one, on raw sockets and in HTTP/2 (PyPI h2).

Usage: early.py serve HTTP1_PORT HTTP2_PORT [NAME DELAY]   the application, in HTTP/1.1 and in HTTP/2
       early.py ask HOST HTTP1_PORT HTTP2_PORT             checks all combinations
       early.py again HOST HTTP1_PORT HTTP2_PORT           the same for attempts that are repeated
       early.py hedged HOST PORT                           the same for attempts side by side

The application says 103 and then waits until the client says, over another connection, that it has it."""

import itertools
import socket
import sys
import threading
import time

import h2.config
import h2.connection
import h2.events

LIMIT = 20
# What no caller may see of an interim response.
HIDDEN = [("weft-reason", "timeout"), ("weft-http1-form", "l:LINK"), ("x-forwarded-client-cert", "URI=spiffe://a/b")]
OF_HOP = [("Connection", "x-own"), ("X-Own", "1"), ("Keep-Alive", "timeout=5")]
seen = {}
attempts = {}
lock = threading.Lock()


def event(key):
    with lock:
        return seen.setdefault(key, threading.Event())


def answer(path, say, name, delay):
    """Says interim responses and returns the final status and body; `say` takes a status and fields."""
    _, what, *key = path.split("/")
    key = "/".join(key)
    hints = [("Link", f"</{key}>; rel=preload")]
    if what == "seen":
        event(key).set()
        return 200, b""
    if what == "early":
        say(103, hints + HIDDEN)
        return 200, b"seen" if event(key).wait(LIMIT / 2) else b"unseen"
    if what == "many":
        for number in range(12):
            say(103, [("Link", f"</{number}>")])
        return 200, b"many"
    if what == "again":
        with lock:
            attempts[key] = attempts.get(key, 0) + 1
        say(103, [("Link", f"</{attempts[key]}>")])
        time.sleep(0.2)
        return (200, b"again") if attempts[key] > 1 else (503, b"not yet")
    if what == "hedged":
        say(103, [("Link", f"</{name}>")])
        time.sleep(delay)
        return 200, name.encode()
    return 404, b""


class Reader:
    """A socket that is read in lines and pieces."""

    def __init__(self, sock):
        self.sock, self.kept = sock, b""

    def fill(self):
        data = self.sock.recv(65536)
        if not data:
            raise EOFError("the connection ends")
        self.kept += data

    def head(self):
        while b"\r\n\r\n" not in self.kept:
            self.fill()
        head, _, self.kept = self.kept.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        return first, [(line.partition(":")[0].lower(), line.partition(":")[2].strip()) for line in lines]

    def exactly(self, length):
        while len(self.kept) < length:
            self.fill()
        data, self.kept = self.kept[:length], self.kept[length:]
        return data


def serve_http1(sock, name, delay):
    reader = Reader(sock)

    def say(status, fields):
        fields = fields + OF_HOP if status == 103 else fields
        lines = "".join(f"{field}: {value}\r\n" for field, value in fields)
        sock.sendall(f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode())

    try:
        while True:
            first, fields = reader.head()
            fields = dict(fields)
            if fields.get("expect"):
                say(100, [])
            body = reader.exactly(int(fields.get("content-length", 0)))
            status, text = answer(first.split(" ")[1], say, name, delay) if not body else (200, body)
            sock.sendall(f"HTTP/1.1 {status} Said\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
    except (OSError, EOFError):
        sock.close()


def serve_http2(sock, name, delay):
    config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
    connection, mine = h2.connection.H2Connection(config), threading.Lock()
    bodies = {}

    def send(what, *args, **more):
        with mine:
            what(*args, **more)
            sock.sendall(connection.data_to_send())

    def head(stream, status, fields):
        fields = [(field.lower(), value) for field, value in fields]
        send(connection.send_headers, stream, [(":status", str(status))] + fields)

    def respond(stream, path):
        body = bodies.pop(stream)
        say = lambda status, fields: head(stream, status, fields)
        try:
            status, text = answer(path, say, name, delay) if not body else (200, body)
            head(stream, status, [("content-length", str(len(text)))])
            send(connection.send_data, stream, text, end_stream=True)
        except (OSError, h2.exceptions.ProtocolError):
            pass

    try:
        send(connection.initiate_connection)
        paths = {}
        while True:
            data = sock.recv(65536)
            if not data:
                return
            with mine:
                events = connection.receive_data(data)
                sock.sendall(connection.data_to_send())
            for event in events:
                if isinstance(event, h2.events.RequestReceived):
                    fields = dict(event.headers)
                    paths[event.stream_id], bodies[event.stream_id] = fields[":path"], b""
                    if "expect" in fields:
                        head(event.stream_id, 100, [])
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    stream = event.stream_id
                    threading.Thread(target=respond, args=[stream, paths[stream]], daemon=True).start()
    except (OSError, h2.exceptions.ProtocolError):
        sock.close()


def accept(port, serve, name, delay):
    listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=[accepted, name, delay], daemon=True).start()


class Http1:
    """A client's connection in HTTP/1.1, over which requests go one after the other."""

    def __init__(self, host, port):
        self.host = f"{host}:{port}"
        self.sock = socket.create_connection((host, port), timeout=LIMIT)
        self.reader = Reader(self.sock)

    def ask(self, path, fields=(), method="GET", version="1.1", end=True):
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        self.sock.sendall(f"{method} {path} HTTP/{version}\r\nHost: {self.host}\r\n{lines}\r\n".encode())

    def send(self, _stream, body):
        self.sock.sendall(body)

    def head(self, _stream):
        first, fields = self.reader.head()
        status = int(first.split(" ")[1])
        self.fields = dict(fields) if status >= 200 else None
        return status, fields

    def body(self, _stream):
        return self.reader.exactly(int(self.fields["content-length"]))


class Http2:
    """A client's connection in HTTP/2."""

    def __init__(self, host, port):
        self.host = f"{host}:{port}"
        self.sock = socket.create_connection((host, port), timeout=LIMIT)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()
        self.heads, self.bodies, self.ended = {}, {}, set()

    def ask(self, path, fields=(), method="GET", end=True):
        stream = self.connection.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "http"), (":authority", self.host), (":path", path)]
        self.connection.send_headers(stream, pseudo + [(name.lower(), value) for name, value in fields], end_stream=end)
        self.heads[stream], self.bodies[stream] = [], b""
        self.sock.sendall(self.connection.data_to_send())
        return stream

    def send(self, stream, body):
        self.connection.send_data(stream, body, end_stream=True)
        self.sock.sendall(self.connection.data_to_send())

    def turn(self):
        data = self.sock.recv(65536)
        if not data:
            raise EOFError("the connection ends")
        for event in self.connection.receive_data(data):
            if isinstance(event, (h2.events.InformationalResponseReceived, h2.events.ResponseReceived)):
                fields = dict(event.headers)
                status = int(fields.pop(":status"))
                self.heads[event.stream_id].append((status, list(fields.items())))
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                raise EOFError(f"stream {event.stream_id} is reset: {event.error_code}")
        self.sock.sendall(self.connection.data_to_send())

    def head(self, stream):
        while not self.heads[stream]:
            self.turn()
        return self.heads[stream].pop(0)

    def body(self, stream):
        while stream not in self.ended:
            self.turn()
        equal(self.heads[stream], [])
        return self.bodies[stream]


CLIENTS = {"http1": Http1, "http2": Http2}
number = itertools.count()


def final(client, stream, body):
    status, _ = client.head(stream)
    equal((status, client.body(stream)), (200, body))


def hinted(client, stream, link):
    """The next head is 103 with this link and nothing else."""
    equal(client.head(stream), (103, [("link", link)]))


class Checks:
    """The checks of one combination."""

    def __init__(self, client, host, port, http1_port):
        self.client, self.host, self.port, self.http1_port = client, host, port, http1_port

    def connect(self):
        return CLIENTS[self.client](self.host, self.port)

    def key(self):
        return f"{self.client}-{self.port}-{next(number)}"

    def tell(self, key):
        other = Http1(self.host, self.http1_port)
        other.ask(f"/seen/{key}")
        final(other, None, b"")

    def early(self):
        client = self.connect()
        for _ in range(3):
            key = self.key()
            stream = client.ask(f"/early/{key}")
            hinted(client, stream, f"</{key}>; rel=preload")
            self.tell(key)
            final(client, stream, b"seen")

    def each_its_own(self):
        client, keys = self.connect(), [self.key(), self.key()]
        streams = [client.ask(f"/early/{key}") for key in keys]
        turns = list(zip(streams, keys))
        if self.client == "http2":
            # The second is answered before the first.
            for stream, key in turns:
                hinted(client, stream, f"</{key}>; rel=preload")
            for stream, key in reversed(turns):
                self.tell(key)
                final(client, stream, b"seen")
            return
        for stream, key in turns:
            hinted(client, stream, f"</{key}>; rel=preload")
            self.tell(key)
            final(client, stream, b"seen")

    def many(self):
        client = self.connect()
        for _ in range(2):
            stream = client.ask("/many")
            for wanted in range(8):
                hinted(client, stream, f"</{wanted}>")
            final(client, stream, b"many")

    def expected(self):
        client = self.connect()
        for _ in range(2):
            fields = [("Expect", "100-continue"), ("Content-Length", "4")]
            stream = client.ask("/continue", fields, method="POST", end=False)
            equal(client.head(stream), (100, []))
            client.send(stream, b"body")
            final(client, stream, b"body")
            # Nobody has asked for it.
            stream = client.ask("/continue", fields[1:], method="POST", end=False)
            client.send(stream, b"more")
            final(client, stream, b"more")

    def old(self):
        client = Http1(self.host, self.port)
        client.ask("/many", version="1.0")
        final(client, None, b"many")

    def again(self):
        client = self.connect()
        for _ in range(2):
            stream = client.ask(f"/again/{self.key()}")
            hinted(client, stream, "</1>")
            hinted(client, stream, "</2>")
            final(client, stream, b"again")

    def hedged(self):
        client, heard = self.connect(), set()
        for _ in range(6):
            stream = client.ask("/hedged")
            status, fields = client.head(stream)
            equal(status, 103)
            heard.add(dict(fields)["link"])
            final(client, stream, b"fast")
        equal(heard, {"</fast>", "</slow>"})


if __name__ == "__main__":
    how, *rest = sys.argv[1:]
    if how == "serve":
        name, delay = (rest[2], float(rest[3])) if rest[2:] else ("one", 0)
        threading.Thread(target=accept, args=[int(rest[1]), serve_http2, name, delay], daemon=True).start()
        accept(int(rest[0]), serve_http1, name, delay)
    from checks import equal, run
    host, ports = rest[0], [int(port) for port in rest[1:]]
    checks = []
    for client, port in itertools.product(CLIENTS, ports):
        of = Checks(client, host, port, ports[0])
        names = ["early", "each_its_own", "many", "expected"] if how == "ask" else [how]
        if how == "ask" and client == "http1":
            names.append("old")
        checks += [(f"{client} {port} {name}", getattr(of, name)) for name in names]
    run(checks)
