"""How tunnels end. Usage: tunnel_ends.py app PORT | app2 PORT | http1 HOST PORT | http2 HOST PORT

The application opens a tunnel for every `Upgrade` and `CONNECT` and does what the first byte in it says: `R`: send
a part and reset the connection; `E`: send a part and end in order; `W`: wait for the end. `app2` speaks HTTP/2 and
resets the stream; after an orderly end too, with NO_ERROR. `GET /seen` says
how the tunnels that waited have ended. The clients print for both kinds of tunnels what they see of a reset, what
the application sees of theirs, and what both see of a tunnel in which nobody speaks."""

import json
import socket
import struct
import sys
import threading
import time

seen = []


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def head_of(sock):
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += sock.recv(1) or sys.exit("ended within a head: %r" % data)
    return data


def end_of(sock):
    data = b""
    try:
        while more := sock.recv(65536):
            data += more
        return data.decode() + " end"
    except OSError:
        return data.decode() + " reset"


def serve(sock):
    head = head_of(sock)
    if head.startswith(b"GET /seen"):
        body = json.dumps(seen).encode()
        sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        return sock.close()
    sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n" if head.startswith(b"CONNECT")
                 else b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
    first = sock.recv(1)
    if first in b"RE":
        sock.sendall(b"part")
        time.sleep(0.3)
        if first == b"R":
            return reset(sock)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
        return sock.close()
    seen.append(end_of(sock).strip())
    sock.close()


def serve_http2(sock):
    import h2.config
    import h2.connection
    import h2.events
    import h2.settings
    h2c = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    h2c.local_settings = h2.settings.Settings(client=False, initial_values={
        h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1, h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 100})
    h2c.initiate_connection()
    sock.sendall(h2c.data_to_send())
    waiting = set()
    while data := sock.recv(65536):
        for event in h2c.receive_data(data):
            match event:
                case h2.events.RequestReceived(stream_id=stream, headers=headers):
                    if dict(headers)[":method"] == "CONNECT":
                        h2c.send_headers(stream, [(":status", "200")])
                    else:
                        body = json.dumps(seen).encode()
                        h2c.send_headers(stream, [(":status", "200"), ("content-length", str(len(body)))])
                        h2c.send_data(stream, body, end_stream=True)
                case h2.events.DataReceived(stream_id=stream, data=b"R"):
                    h2c.send_data(stream, b"part")
                    sock.sendall(h2c.data_to_send())
                    time.sleep(0.3)
                    h2c.reset_stream(stream, 8)
                case h2.events.DataReceived(stream_id=stream, data=b"E"):
                    # All that it has to say, and it reads no more (RFC 9113 section 8.1).
                    h2c.send_data(stream, b"part", end_stream=True)
                    h2c.reset_stream(stream, 0)
                case h2.events.DataReceived(stream_id=stream, data=b"W"):
                    waiting.add(stream)
                case h2.events.StreamReset(stream_id=stream) if stream in waiting:
                    waiting.remove(stream)
                    seen.append("reset")
                case h2.events.StreamEnded(stream_id=stream) if stream in waiting:
                    waiting.remove(stream)
                    seen.append("end")
        sock.sendall(h2c.data_to_send())
    seen.extend("lost" for _stream in waiting)


def application(port, serve):
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def asked(address):
    with socket.create_connection(address, timeout=20) as sock:
        sock.sendall(b"GET /seen HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        head_of(sock)
        data = b""
        while more := sock.recv(65536):
            data += more
        return json.loads(data)


class Http1:
    def __init__(self, address, connect):
        self.sock = socket.create_connection(address, timeout=20)
        self.sock.sendall(b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n" if connect else
                          b"GET /up HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        head_of(self.sock)

    def send(self, data):
        self.sock.sendall(data)

    def reset(self):
        reset(self.sock)

    def end(self):
        return end_of(self.sock)


class Http2:
    def __init__(self, address, connect):
        import h2.connection
        import h2.events
        import h2.settings
        self.events = h2.events
        self.sock = socket.create_connection(address, timeout=20)
        self.h2 = h2.connection.H2Connection()
        self.h2.initiate_connection()
        fields = [(":method", "CONNECT"), (":authority", "x:80")]
        if not connect:
            fields += [(":scheme", "http"), (":path", "/up"), (":protocol", "echo")]
        self.h2.send_headers(1, fields)
        self.flush()
        self.until(h2.events.ResponseReceived)

    def flush(self):
        self.sock.sendall(self.h2.data_to_send())

    def until(self, *kinds):
        data = b""
        while True:
            for event in self.h2.receive_data(self.sock.recv(65536)):
                if isinstance(event, self.events.DataReceived):
                    data += event.data
                if isinstance(event, kinds):
                    return data.decode(), event
            self.flush()

    def send(self, data):
        self.h2.send_data(1, data)
        self.flush()

    def reset(self):
        self.h2.reset_stream(1, 8)
        self.flush()

    def end(self):
        data, event = self.until(self.events.StreamEnded, self.events.StreamReset)
        return data + (" end" if isinstance(event, self.events.StreamEnded) else " reset")


def client(kind, address):
    for connect in (False, True):
        tunnel = kind(address, connect)
        tunnel.send(b"E")
        for _piece in range(3):
            # Nobody has to read it.
            time.sleep(0.2)
            tunnel.send(b"x")
        print("application ends:", tunnel.end(), flush=True)
        tunnel = kind(address, connect)
        tunnel.send(b"R")
        print("application resets:", tunnel.end(), flush=True)
        for what in ("client resets", "nobody speaks"):
            before = len(asked(address))
            tunnel = kind(address, connect)
            tunnel.send(b"W")
            if what == "client resets":
                time.sleep(0.3)
                tunnel.reset()
            else:
                print(what + ":", tunnel.end(), flush=True)
            while len(now := asked(address)) == before:
                time.sleep(0.05)
            print(what + ": application sees", now[-1], flush=True)


address = (sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 3 else None
match sys.argv[1]:
    case "app":
        application(int(sys.argv[2]), serve)
    case "app2":
        application(int(sys.argv[2]), serve_http2)
    case "http1":
        client(Http1, address)
    case "http2":
        client(Http2, address)
