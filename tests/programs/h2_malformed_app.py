"""An HTTP/2 application whose answers are malformed as the path says (RFC 9113), written frame by frame with
hyperframe and hpack (PyPI h2's own). `/hold` is answered after two seconds, `/plain` at once.
Usage: h2_malformed_app.py PORT"""

import socket
import struct
import sys
import threading

import hpack

END_STREAM, END_HEADERS, PRIORITY = 0x1, 0x4, 0x20
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 8, 9


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    """A field that leaves no trace in the table."""
    return b"\0" + hpack.hpack.encode_integer(len(name), 7) + name + hpack.hpack.encode_integer(len(value), 7) + value


def block(*fields):
    return b"".join(literal(name, value) for name, value in fields)


def head(stream, fields, flags=0):
    """A block of any size."""
    payload, kind, out = block(*fields), HEADERS, b""
    while True:
        part, payload = payload[:16384], payload[16384:]
        out += frame(kind, (flags if kind == HEADERS else 0) | (0 if payload else END_HEADERS), stream, part)
        kind = CONTINUATION
        if not payload:
            return out


OK = (b":status", b"200")


def padding(kilobytes):
    return [(b"x-large-%d" % i, b"v" * 1000) for i in range(kilobytes)]


def fields(count):
    return [(b"x-%d" % i, b"1") for i in range(count)]


ANSWERS = {
    # Malformed messages: stream errors.
    "pseudo-last": lambda s: head(s, [(b"a", b"b"), OK], END_STREAM),
    "no-status": lambda s: head(s, [(b"a", b"b")], END_STREAM),
    "two-statuses": lambda s: head(s, [OK, OK], END_STREAM),
    "connection-field": lambda s: head(s, [OK, (b"connection", b"close")], END_STREAM),
    "transfer-encoding": lambda s: head(s, [OK, (b"transfer-encoding", b"chunked")], END_STREAM),
    "too-long": lambda s: head(s, [OK, (b"content-length", b"2")]) + frame(DATA, END_STREAM, s, b"abc"),
    "too-short": lambda s: head(s, [OK, (b"content-length", b"5")]) + frame(DATA, END_STREAM, s, b"abc"),
    "two-lengths": lambda s: head(s, [OK, (b"content-length", b"1"), (b"content-length", b"2")])
                   + frame(DATA, END_STREAM, s, b"a"),
    # What is no message at all.
    "data-first": lambda s: frame(DATA, END_STREAM, s, b"abc"),
    "upper-case": lambda s: head(s, [OK, (b"X-Name", b"b")], END_STREAM),
    "window-zero": lambda s: frame(WINDOW_UPDATE, 0, s, struct.pack(">I", 0)),
    "depends-on-itself": lambda s: frame(HEADERS, END_STREAM | END_HEADERS | PRIORITY, s,
                                         struct.pack(">IB", s, 1) + block(OK)),
    "data-after-end": lambda s: head(s, [OK], END_STREAM) + frame(DATA, 0, s, b"abc"),
    "push": lambda s: frame(PUSH_PROMISE, END_HEADERS, s, struct.pack(">I", 2) + block(OK)),
    # Large ones.
    "head-of-100": lambda s: head(s, [OK, *padding(100)], END_STREAM),
    "head-of-600": lambda s: head(s, [OK, *padding(600)], END_STREAM),
    "trailers-of-100": lambda s: head(s, [OK]) + frame(DATA, 0, s, b"abc")
                       + head(s, padding(100), END_STREAM),
    "grpc-trailers-of-100": lambda s: head(s, [OK, (b"content-type", b"application/grpc")])
                            + frame(DATA, 0, s, b"\0\0\0\0\0")
                            + head(s, [*padding(100), (b"grpc-status", b"0")], END_STREAM),
    # Many fields.
    "head-of-256-fields": lambda s: head(s, [OK, *fields(256)], END_STREAM),
    "head-of-257-fields": lambda s: head(s, [OK, *fields(257)], END_STREAM),
    "trailers-of-257-fields": lambda s: head(s, [OK]) + frame(DATA, 0, s, b"abc")
                              + head(s, fields(257), END_STREAM),
    "grpc-trailers-of-257-fields": lambda s: head(s, [OK, (b"content-type", b"application/grpc")])
                                   + frame(DATA, 0, s, b"\0\0\0\0\0")
                                   + head(s, [*fields(256), (b"grpc-status", b"0")], END_STREAM),
    "plain": lambda s: head(s, [OK]) + frame(DATA, END_STREAM, s, b"plain"),
}


def serve(sock):
    lock, decoder, partial = threading.Lock(), hpack.Decoder(), {}

    def send(data):
        with lock:
            try:
                sock.sendall(data)
            except OSError:
                pass

    def exactly(length):
        data = b""
        while len(data) < length:
            part = sock.recv(length - len(data))
            if not part:
                raise OSError
            data += part
        return data

    def answer(stream, path):
        name = path.strip("/").split("?")[0]
        if name == "hold":
            return threading.Timer(2, send, [ANSWERS["plain"](stream)]).start()
        send(ANSWERS.get(name, ANSWERS["plain"])(stream))

    exactly(24)
    send(frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 1000)))
    try:
        while True:
            start = exactly(9)
            length, kind, flags = int.from_bytes(start[:3], "big"), start[3], start[4]
            stream, payload = int.from_bytes(start[5:], "big"), exactly(length)
            if kind == SETTINGS and not flags & 1:
                send(frame(SETTINGS, 1, 0))
            elif kind == PING and not flags & 1:
                send(frame(PING, 1, 0, payload))
            elif kind in (HEADERS, CONTINUATION):
                if kind == HEADERS and flags & PRIORITY:
                    payload = payload[5:]
                partial[stream] = partial.get(stream, b"") + payload
                if flags & END_HEADERS:
                    fields = dict(decoder.decode(partial.pop(stream)))
                    if ":path" in fields:
                        answer(stream, fields[":path"])
    except OSError:
        sock.close()


listener = socket.create_server(("", int(sys.argv[1])), backlog=128, family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    accepted, _ = listener.accept()
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=[accepted], daemon=True).start()
