"""An application that writes down what reaches it, in HTTP/1.1 and HTTP/2 (prior knowledge), on raw sockets. It takes
only what no two servers read differently; the rest is a violation. Each request is answered with its own target.

Prints one JSON object for each: {"port", "method", "target", "host", "fields", "body", "trailers"}, or
{"port", "violation", "bytes"}, or {"port", "partial", "target"} for a message that ended early.
Usage: recorder.py PORT..."""

import json
import re
import socket
import struct
import sys
import threading

import hpack

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?\Z")
TARGET = re.compile(rb"[\x21\x24-\x7e\x80-\xff][\x21\x22\x24-\x7e\x80-\xff]*\Z")
HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]{0,5})?\Z")
OF_A_CONNECTION = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
# Neither framing, routing nor who calls belongs into trailers (RFC 9110 section 6.5.1).
NO_TRAILER = OF_A_CONNECTION | {b"content-length", b"host", b"te", b"trailer", b"authorization", b"cookie",
                                b"content-encoding", b"content-type", b"x-forwarded-client-cert"}
# The mesh's own, and what servers fold into it.
FORGED = re.compile(rb"weft[^a-z0-9](?!deadline\Z|hops\Z)", re.I)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LOCK = threading.Lock()


class Violation(Exception):
    pass


class Ended(Exception):
    pass


def text(data):
    return data.decode("latin-1")


def pairs(fields):
    return [[text(name), text(value)] for name, value in fields]


def tell(port, **what):
    with LOCK:
        print(json.dumps(dict(port=port, **what)), flush=True)


def check_fields(fields, trailers=False):
    for name, value in fields:
        if not TOKEN.match(name):
            raise Violation(f"the name {name!r}")
        if not VALUE.match(value):
            raise Violation(f"the value of {name!r}: {value!r}")
        if FORGED.match(name):
            raise Violation(f"the mesh's own {name!r}")
        if trailers and name.lower() in NO_TRAILER:
            raise Violation(f"{name!r} in trailers")


def values(fields, wanted):
    return [value for name, value in fields if name.lower() == wanted]


def length_of(fields):
    lengths = values(fields, b"content-length")
    if len(lengths) > 1:
        raise Violation("two Content-Length")
    if lengths and not re.match(rb"(0|[1-9][0-9]{0,18})\Z", lengths[0]):
        raise Violation(f"Content-Length {lengths[0]!r}")
    return int(lengths[0]) if lengths else None


def check_target(method, target):
    if not TOKEN.match(method) or len(method) > 64:
        raise Violation(f"the method {method!r}")
    if not TARGET.match(target):
        raise Violation(f"the target {target!r}")


def check_host(host):
    if not HOST.match(host):
        raise Violation(f"the host {host!r}")


class Wire:
    def __init__(self, sock, kept=b""):
        self.sock, self.kept, self.all = sock, kept, b""

    def fill(self):
        data = self.sock.recv(65536)
        if not data:
            raise Ended
        self.kept += data

    def exactly(self, count):
        while len(self.kept) < count:
            self.fill()
        data, self.kept = self.kept[:count], self.kept[count:]
        self.all = (self.all + data)[-4000:]
        return data

    def line(self):
        """Ends in CRLF, and has no other CR or LF."""
        while b"\n" not in self.kept:
            self.fill()
        line = self.exactly(self.kept.index(b"\n") + 1)
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise Violation(f"the line {line!r}")
        return line[:-2]

    def fields(self):
        found = []
        while line := self.line():
            name, colon, value = line.partition(b":")
            if not colon:
                raise Violation(f"the line {line!r}")
            found.append((name, value.strip(b" \t")))
        return found


class Http1:
    def __init__(self, port, sock, kept):
        self.port, self.sock, self.wire = port, sock, Wire(sock, kept)

    def run(self):
        target = b""
        try:
            while True:
                self.wire.all, target = b"", b""
                line = self.wire.line()
                target = line
                self.request(line)
        except Ended:
            if target or self.wire.kept:
                tell(self.port, partial=text(self.wire.kept[-200:]), target=text(target))
        except Violation as violation:
            tell(self.port, violation=str(violation), bytes=text(self.wire.all + self.wire.kept)[-4000:])

    def request(self, line):
        parts = re.match(rb"([^ ]+) ([^ ]+) HTTP/1\.1\Z", line)
        if not parts:
            raise Violation(f"the request line {line!r}")
        method, target = parts.groups()
        check_target(method, target)
        fields = self.wire.fields()
        check_fields(fields)
        hosts = values(fields, b"host")
        if len(hosts) != 1:
            raise Violation(f"{len(hosts)} Host")
        check_host(hosts[0])
        absolute = re.match(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?]*)", target)
        if absolute and absolute[1] != hosts[0]:
            raise Violation(f"the target {target!r} and Host {hosts[0]!r}")
        if not absolute and not target.startswith(b"/") and target != b"*" and method != b"CONNECT":
            raise Violation(f"the target {target!r}")
        length, codings = length_of(fields), values(fields, b"transfer-encoding")
        if codings and (len(codings) > 1 or codings[0] != b"chunked" or length is not None):
            raise Violation(f"Transfer-Encoding {codings!r} and Content-Length {length}")
        body, trailers = self.chunks() if codings else (self.wire.exactly(length or 0), [])
        check_fields(trailers, trailers=True)
        tell(self.port, method=text(method), target=text(target), host=text(hosts[0]), fields=pairs(fields),
             body=text(body), trailers=pairs(trailers))
        answer = target if method != b"HEAD" else b""
        status = b"400 No" if method == b"CONNECT" else b"200 OK"
        self.sock.sendall(b"HTTP/1.1 " + status + b"\r\ncontent-length: %d\r\n\r\n" % len(target) + answer)

    def chunks(self):
        body = b""
        while True:
            line = self.wire.line()
            if not re.match(rb"[0-9A-Fa-f]{1,15}\Z", line):
                raise Violation(f"the size of a chunk {line!r}")
            if not (size := int(line, 16)):
                return body, self.wire.fields()
            body += self.wire.exactly(size)
            if self.wire.exactly(2) != b"\r\n":
                raise Violation("the end of a chunk")


class Stream:
    def __init__(self, fields):
        self.fields, self.body, self.trailers = fields, b"", []

    def __bytes__(self):
        lines = [name + b": " + value for name, value in self.fields + self.trailers]
        return b"\n".join([*lines, self.body])


class Http2:
    DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9

    def __init__(self, port, sock, kept):
        self.port, self.sock, self.wire, self.streams = port, sock, Wire(sock, kept), {}
        self.decoder = hpack.Decoder()

    def send(self, kind, flags, stream, payload=b""):
        self.sock.sendall(struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload)

    def run(self):
        try:
            if self.wire.exactly(len(PREFACE)) != PREFACE:
                raise Violation("the preface")
            self.send(self.SETTINGS, 0, 0)
            while True:
                self.frame()
        except Ended:
            for stream in self.streams.values():
                tell(self.port, partial=text(stream.body), target=text(dict(stream.fields).get(b":path", b"")))
        except (Violation, hpack.HPACKError) as violation:
            tell(self.port, violation=repr(violation), bytes=text(self.wire.all)[-4000:])

    def frame(self):
        start = self.wire.exactly(9)
        length, kind, flags = int.from_bytes(start[:3], "big"), start[3], start[4]
        number, payload = int.from_bytes(start[5:], "big"), self.wire.exactly(length)
        if kind in (self.DATA, self.HEADERS) and flags & 0x8:
            payload = payload[1:len(payload) - payload[0]]
        if kind == self.SETTINGS and not flags & 1:
            self.send(self.SETTINGS, 1, 0)
        elif kind == self.PING and not flags & 1:
            self.send(self.PING, 1, 0, payload)
        elif kind == self.RESET and (gone := self.streams.pop(number, None)):
            tell(self.port, partial=text(gone.body), target=text(dict(gone.fields).get(b":path", b"")))
        elif kind == self.HEADERS:
            payload = payload[5:] if flags & 0x20 else payload
            while not flags & 0x4:
                start = self.wire.exactly(9)
                if start[3] != self.CONTINUATION:
                    raise Violation("a frame in a head")
                payload += self.wire.exactly(int.from_bytes(start[:3], "big"))
                flags |= start[4]
            self.head(number, self.decoder.decode(payload, raw=True), bool(flags & 1))
        elif kind == self.DATA:
            if length:
                self.send(self.WINDOW, 0, 0, struct.pack(">I", length))
            if number in self.streams:
                self.streams[number].body += payload
                if flags & 1:
                    self.end(number)

    def head(self, number, fields, end):
        if number not in self.streams:
            self.streams[number] = Stream(fields)
        else:
            self.streams[number].trailers = fields
        if end:
            self.end(number)

    def end(self, number):
        """Others on the connection have nothing to do with a violation."""
        stream = self.streams.pop(number)
        try:
            self.request(number, stream)
        except Violation as violation:
            tell(self.port, violation=str(violation), bytes=text(bytes(stream)))
            self.send(self.RESET, 0, number, struct.pack(">I", 1))

    def request(self, number, stream):
        if any(name.startswith(b":") for name, _ in stream.trailers):
            raise Violation("a pseudo-header field in trailers")
        check_fields(stream.trailers, trailers=True)
        pseudo = [(name, value) for name, value in stream.fields if name.startswith(b":")]
        fields = stream.fields[len(pseudo):]
        if pseudo != stream.fields[:len(pseudo)]:
            raise Violation(f"the order of {stream.fields!r}")
        of = dict(pseudo)
        if len(of) != len(pseudo) or set(of) - {b":method", b":scheme", b":path", b":authority"}:
            raise Violation(f"the pseudo-header fields {pseudo!r}")
        if not {b":method", b":scheme", b":path"} <= set(of) or of[b":scheme"] not in (b"http", b"https"):
            raise Violation(f"the pseudo-header fields {pseudo!r}")
        check_target(of[b":method"], of[b":path"])
        if not of[b":path"].startswith(b"/") and of[b":path"] != b"*":
            raise Violation(f"the path {of[b':path']!r}")
        check_fields(fields)
        for name, value in fields:
            if name != name.lower() or name in OF_A_CONNECTION or (name == b"te" and value != b"trailers"):
                raise Violation(f"{name!r}: {value!r}")
        hosts = [of[b":authority"]] if b":authority" in of else []
        hosts += values(fields, b"host")
        if not hosts or len(set(hosts)) != 1:
            raise Violation(f"the hosts {hosts!r}")
        check_host(hosts[0])
        length = length_of(fields)
        if length not in (None, len(stream.body)):
            raise Violation(f"content-length {length} of {len(stream.body)} bytes")
        tell(self.port, method=text(of[b":method"]), target=text(of[b":path"]), host=text(hosts[0]),
             fields=pairs(fields), body=text(stream.body), trailers=pairs(stream.trailers))
        answer = of[b":path"] if of[b":method"] != b"HEAD" else b""
        self.send(self.HEADERS, 0x4, number, b"\x88")
        self.send(self.DATA, 0x1, number, answer)


def serve(port, sock):
    kept = b""
    try:
        while len(kept) < 3 and b"PRI".startswith(kept):
            data = sock.recv(65536)
            if not data:
                return
            kept += data
        (Http2 if kept.startswith(b"PRI") else Http1)(port, sock, kept).run()
    except OSError:
        pass
    finally:
        sock.close()


def listen(port):
    listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
    while True:
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=[port, accepted], daemon=True).start()


PORTS = [int(port) for port in sys.argv[1:]]
for port in PORTS[1:]:
    threading.Thread(target=listen, args=[port], daemon=True).start()
listen(PORTS[0])
