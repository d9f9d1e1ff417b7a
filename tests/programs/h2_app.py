"""An HTTP/2 application (PyPI h2) that says what it has seen.
Usage: h2_app.py PORT STREAMS DELAY
It takes STREAMS requests at a time on a connection (SETTINGS_MAX_CONCURRENT_STREAMS) and answers each
after DELAY seconds, but for /seen at once: a JSON object with the connections so far, the most of them
that were open at a time, the most requests that were under way on one of them, and the PINGs."""

import json
import socket
import sys
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.settings

PORT, STREAMS, DELAY = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
seen = dict(connections=0, open=0, most_open=0, most=0, pings=0, requests=0)


def serve(sock):
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    lock, under_way = threading.Lock(), set()
    connection.local_settings = h2.settings.Settings(
        client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS})
    connection.initiate_connection()

    def flush():
        data = connection.data_to_send()
        if data:
            sock.sendall(data)

    def answer(stream):
        with lock:
            if stream not in under_way:
                return
            under_way.discard(stream)
            try:
                connection.send_headers(stream, [(":status", "200"), ("grpc-status", "0")])
                connection.send_data(stream, json.dumps(seen).encode() + b"\n", end_stream=True)
                flush()
            except (OSError, h2.exceptions.ProtocolError):
                pass

    with lock:
        flush()
    while True:
        try:
            data = sock.recv(65536)
            with lock:
                events = connection.receive_data(data) if data else []
                for event in events:
                    if isinstance(event, h2.events.RequestReceived):
                        under_way.add(event.stream_id)
                        path = dict(event.headers).get(b":path", dict(event.headers).get(":path"))
                        if path in (b"/seen", "/seen"):
                            delay = 0
                        else:
                            seen["requests"] += 1
                            seen["most"] = max(seen["most"], len(under_way))
                            delay = DELAY
                        threading.Timer(delay, answer, [event.stream_id]).start()
                    elif isinstance(event, h2.events.StreamReset):
                        under_way.discard(event.stream_id)
                    elif isinstance(event, h2.events.PingReceived):
                        seen["pings"] += 1
                flush()
        except (OSError, h2.exceptions.ProtocolError):
            return
        if not data:
            return


def serve_counted(sock):
    seen["open"] += 1
    seen["most_open"] = max(seen["most_open"], seen["open"])
    try:
        serve(sock)
    finally:
        seen["open"] -= 1


listener = socket.create_server(("", PORT), backlog=512, family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    accepted, _ = listener.accept()
    seen["connections"] += 1
    threading.Thread(target=serve_counted, args=[accepted], daemon=True).start()
