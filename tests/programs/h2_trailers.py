"""Reads half of a large answer, sends requests with trailers on the same connection, and reads the rest:
prints `whole` where all of it came. Usage: h2_trailers.py HOST PORT"""

import socket
import sys

import h2.config
import h2.connection
import h2.events

HOST, PORT, LARGE = sys.argv[1], int(sys.argv[2]), 8 << 20
sock = socket.create_connection((HOST, PORT), timeout=30)
connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
connection.initiate_connection()
# Only the large answer has to wait for its reader.
connection.increment_flow_control_window(1 << 20)
waiting, received, ended = 0, 0, set()


def begin(method, path, *fields, end):
    stream = connection.get_next_available_stream_id()
    head = [(":method", method), (":scheme", "http"), (":path", path), (":authority", HOST), *fields]
    connection.send_headers(stream, head, end_stream=end)
    return stream


def step():
    global waiting, received
    sock.sendall(connection.data_to_send())
    data = sock.recv(65536)
    assert data, "the connection has ended"
    for event in connection.receive_data(data):
        if isinstance(event, h2.events.DataReceived) and event.stream_id == large:
            received += len(event.data)
            waiting += event.flow_controlled_length
        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
            ended.add(event.stream_id)


large = begin("GET", "/large", end=True)
while received < 30000:
    step()
for fields in [[], [("trailer", "x-sum")]] * 3:
    stream = begin("POST", "/", *fields, end=False)
    connection.send_data(stream, b"hello")
    connection.send_headers(stream, [("x-sum", "1")], end_stream=True)
    while stream not in ended:
        step()
while large not in ended:
    if waiting:
        connection.acknowledge_received_data(waiting, large)
        waiting = 0
    step()
print("whole" if received == LARGE else f"{received} bytes of {LARGE}", flush=True)
