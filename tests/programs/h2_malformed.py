"""Malformed streams beside one that is well (PyPI h2). Prints one JSON object: name -> what became of the
malformed one and of its neighbour, which was under way on the same connection: `STATUS:REASON`, or
`reset CODE`, or `ended`.
Usage: h2_malformed.py HOST PORT answers NAME…    asks h2_malformed_app.py for malformed answers
       h2_malformed.py HOST PORT requests NAME…   sends malformed requests"""

import json
import struct
import sys
import threading

from websocket_h2 import Bytes, Client

HOST, PORT, WHAT, NAMES = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
KEPT = [None]


def client():
    """A connection that still stands."""
    if KEPT[0] is None or KEPT[0].ended:
        KEPT[0] = Client(HOST, PORT)
        KEPT[0].h2.config.validate_outbound_headers = False
        KEPT[0].h2.config.normalize_outbound_headers = False
    return KEPT[0]


def begin(connection, path, method="POST", more=(), end=True):
    stream = Bytes()
    with connection.changed:
        number = connection.h2.get_next_available_stream_id()
        connection.streams[number] = stream
        fields = [(":method", method), (":scheme", "http"), (":authority", connection.authority), (":path", path)]
        connection.h2.send_headers(number, [*fields, *more], end_stream=end)
        connection.flush()
    return number, stream


def outcome(connection, stream):
    try:
        connection.wait(lambda: stream.over, 40)
    except AssertionError as error:
        return "ended" if connection.ended else str(error)
    if stream.head is None:
        return stream.over
    said = f"{stream.head[':status']}:{stream.head.get('weft-reason', '')}"
    if "grpc-status" in stream.head:
        said = f"grpc {stream.head['grpc-status']}:{stream.head.get('weft-reason', '')}"
    if "grpc-status" in stream.trailers:
        said += f" grpc {stream.trailers['grpc-status']}"
    return said if stream.over == "end" else f"{said} {stream.over}"


def malformed_answers(name):
    connection = client()
    _, held = begin(connection, "/hold")
    more = [("content-type", "application/grpc"), ("te", "trailers")] if name.startswith("grpc") else []
    _, bad = begin(connection, "/" + name, more=more)
    return outcome(connection, bad), outcome(connection, held)


def raw(connection, kind, flags, number, payload):
    with connection.changed:
        connection.flush()
        connection.sock.sendall(struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
                                + struct.pack(">I", number) + payload)


def large(kilobytes):
    return [(f"x-large-{i}", "v" * 1000) for i in range(kilobytes)]


def malformed_requests(name):
    connection = client()
    _, held = begin(connection, "/hold")
    if name == "pseudo-last":
        with connection.changed:
            number, bad = connection.h2.get_next_available_stream_id(), Bytes()
            connection.streams[number] = bad
            connection.h2.send_headers(number, [("a", "b"), (":method", "GET"), (":scheme", "http"),
                                                (":authority", "x"), (":path", "/plain")], end_stream=True)
            connection.flush()
    elif name == "connection-field":
        _, bad = begin(connection, "/plain", more=[("connection", "close")])
    elif name == "upper-case":
        _, bad = begin(connection, "/plain", more=[("X-Name", "b")])
    elif name == "too-long":
        number, bad = begin(connection, "/plain", more=[("content-length", "2")], end=False)
        raw(connection, 0, 1, number, b"abc")
    elif name == "too-short":
        number, bad = begin(connection, "/plain", more=[("content-length", "5")], end=False)
        raw(connection, 0, 1, number, b"abc")
    elif name == "window-zero":
        number, bad = begin(connection, "/hold")
        raw(connection, 8, 0, number, struct.pack(">I", 0))
    elif name == "data-after-end":
        number, bad = begin(connection, "/hold")
        raw(connection, 0, 0, number, b"abc")
    elif name == "depends-on-itself":
        number, bad = begin(connection, "/hold")
        raw(connection, 2, 0, number, struct.pack(">IB", number, 1))
    elif name.startswith("head-of-"):
        _, bad = begin(connection, "/plain", more=large(int(name[8:])))
    elif name.startswith("trailers-of-"):
        number, bad = begin(connection, "/hold", end=False)
        trailers = [(f"x-{i}", "1") for i in range(257)] if name.endswith("fields") else large(100)
        with connection.changed:
            connection.h2.send_headers(number, trailers, end_stream=True)
            connection.flush()
    else:
        number, bad = begin(connection, "/" + name)
    return outcome(connection, bad), outcome(connection, held)


what = malformed_answers if WHAT == "answers" else malformed_requests
print(json.dumps({name: what(name) for name in NAMES}), flush=True)
