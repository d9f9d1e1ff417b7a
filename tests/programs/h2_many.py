"""Many HTTP/2 requests on one connection (PyPI h2).
Usage: h2_many.py HOST PORT COUNT AT-ONCE KIND [AUTHORITY]
KIND is `get`, `post` (a body of some bytes), `grpc` (the same as a gRPC call) or `trailers` (a body that
announces trailers, and ends with them after the answer). Prints one JSON object:
how often each answer came, as `STATUS:GRPC-STATUS:WEFT-REASON`, and the seconds that all took."""

import json
import socket
import sys
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions

HOST, PORT, COUNT, AT_ONCE, KIND = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
AUTHORITY = sys.argv[6] if len(sys.argv) > 6 else f"{HOST}:{PORT}"
began = time.monotonic()
sock = socket.create_connection((HOST, PORT), timeout=60)
connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
connection.initiate_connection()
begun, under_way, answers, heads = 0, set(), {}, {}


def begin():
    stream = connection.get_next_available_stream_id()
    headers = [(":method", "GET" if KIND == "get" else "POST"), (":scheme", "http"), (":path", "/"),
               (":authority", AUTHORITY)]
    if KIND == "grpc":
        headers += [("content-type", "application/grpc"), ("te", "trailers")]
    if KIND == "trailers":
        headers.append(("trailer", "x-sum"))
    connection.send_headers(stream, headers, end_stream=KIND == "get")
    if KIND != "get":
        connection.send_data(stream, b"\0\0\0\0\x05hello", end_stream=KIND != "trailers")
    under_way.add(stream)


def count(what, stream):
    under_way.discard(stream)
    answers[what] = answers.get(what, 0) + 1


def end(stream):
    if KIND != "trailers":
        return
    try:
        connection.send_headers(stream, [("x-sum", "1")], end_stream=True)
    except h2.exceptions.ProtocolError:
        pass  # The other side has not waited for it.


def said(headers):
    fields = dict(headers)
    return f"{fields.get(':status')}:{fields.get('grpc-status', '')}:{fields.get('weft-reason', '')}"


while begun < COUNT or under_way:
    while begun < COUNT and len(under_way) < AT_ONCE:
        begin()
        begun += 1
    sock.sendall(connection.data_to_send())
    data = sock.recv(65536)
    for event in connection.receive_data(data) if data else [h2.events.ConnectionTerminated()]:
        if isinstance(event, h2.events.ResponseReceived):
            heads[event.stream_id] = said(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            count(heads.pop(event.stream_id, "no answer"), event.stream_id)
            end(event.stream_id)
        elif isinstance(event, h2.events.StreamReset) and event.stream_id in under_way:
            count(f"reset {int(event.error_code)}", event.stream_id)
        elif isinstance(event, h2.events.ConnectionTerminated):
            answers["connection ended"] = len(under_way) + COUNT - begun
            under_way, begun = set(), COUNT
            break
print(json.dumps(dict(answers=answers, seconds=round(time.monotonic() - began, 2))), flush=True)
