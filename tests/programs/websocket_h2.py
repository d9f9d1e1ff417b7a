"""WebSocket over HTTP/2 (RFC 8441): PyPI h2 for the streams, PyPI websockets for the frames."""

import socket
import threading

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from websockets.protocol import CLIENT, OPEN, SERVER, Protocol

CONNECT_PROTOCOL = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
MAX_MESSAGE = 16 << 20


class Connection:
    """A connection in HTTP/2; `self.changed` guards everything and tells that something came."""

    def __init__(self, sock, client_side, settings=None):
        self.sock = sock
        self.client_side = client_side
        self.changed = threading.Condition()
        config = h2.config.H2Configuration(client_side=client_side, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        if settings:
            self.h2.local_settings = h2.settings.Settings(client=client_side, initial_values=settings)
        self.h2.initiate_connection()
        # Room for a whole message of the tests.
        self.h2.increment_flow_control_window(64 << 20)
        self.streams = {}
        self.outgoing = {}
        self.settings = {}
        self.ended = False
        self.flush()

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.sock.sendall(data)

    def send(self, stream, data, end=False):
        with self.changed:
            self.outgoing.setdefault(stream, [bytearray(), False])
            self.outgoing[stream][0] += data
            self.outgoing[stream][1] |= end
            self.pump()

    def pump(self):
        for stream, waiting in list(self.outgoing.items()):
            data, end = waiting
            try:
                while data:
                    room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
                    if room <= 0:
                        break
                    self.h2.send_data(stream, bytes(data[:room]))
                    del data[:room]
                if not data:
                    if end:
                        self.h2.end_stream(stream)
                    del self.outgoing[stream]
            except (h2.exceptions.StreamClosedError, h2.exceptions.ProtocolError):
                self.outgoing.pop(stream, None)
        self.flush()

    def run(self, on_request=None):
        """Receives until the other side ends the connection."""
        while True:
            try:
                data = self.sock.recv(65536)
            except OSError:
                data = b""
            with self.changed:
                try:
                    events = self.h2.receive_data(data) if data else []
                except h2.exceptions.ProtocolError:
                    data = b""
                    events = []
                for event in events:
                    self.on_event(event, on_request)
                try:
                    self.pump()
                except OSError:
                    data = b""
                self.ended |= not data
                self.changed.notify_all()
                if self.ended:
                    return

    def on_event(self, event, on_request):
        stream = self.streams.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.RemoteSettingsChanged):
            self.settings.update({code: change.new_value for code, change in event.changed_settings.items()})
        elif isinstance(event, h2.events.RequestReceived):
            on_request(event.stream_id, dict(event.headers))
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.ended = True
        elif stream is None:
            return
        elif isinstance(event, h2.events.ResponseReceived):
            stream.head = dict(event.headers)
        elif isinstance(event, h2.events.TrailersReceived):
            stream.trailers = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            stream.on_data(event.data)
        elif isinstance(event, h2.events.StreamEnded):
            stream.over = "end"
            if isinstance(stream, Echo) and stream.raw:
                self.send(event.stream_id, b"", end=True)
        elif isinstance(event, h2.events.StreamReset):
            stream.over = f"reset {int(event.error_code)}"


class Bytes:
    """A stream whose bytes are kept as they are."""

    def __init__(self):
        self.head, self.trailers, self.over, self.data = None, {}, None, b""

    def on_data(self, data):
        self.data += data


class Socket(Bytes):
    """A stream with WebSocket's frames."""

    def __init__(self, side):
        super().__init__()
        self.protocol = Protocol(side, state=OPEN, max_size=MAX_MESSAGE)
        self.frames = []

    def on_data(self, data):
        if self.head is not None and self.head.get(":status") != "200":
            return super().on_data(data)
        self.protocol.receive_data(data)
        self.frames += self.protocol.events_received()


class Client(Connection):
    def __init__(self, host, port, authority=None):
        self.authority = authority or f"{host}:{port}"
        super().__init__(socket.create_connection((host, port), timeout=60), True)
        threading.Thread(target=self.run, daemon=True).start()

    def wait(self, condition, seconds=30):
        with self.changed:
            if not self.changed.wait_for(lambda: condition() or self.ended, seconds):
                raise AssertionError("timed out")
            if not condition():
                raise AssertionError("the connection ended")

    def request(self, headers, stream, end):
        with self.changed:
            number = self.h2.get_next_available_stream_id()
            self.streams[number] = stream
            self.h2.send_headers(number, headers, end_stream=end)
            self.flush()
        self.wait(lambda: stream.head is not None or stream.over)
        return number

    def get(self, path):
        """The answer to an ordinary request, whole."""
        stream = Bytes()
        self.request([(":method", "GET"), (":scheme", "http"), (":authority", self.authority), (":path", path)],
                     stream, True)
        self.wait(lambda: stream.over)
        return stream

    def connect(self, path, protocol="websocket", stream=None, more=()):
        """Asks for a stream in another protocol."""
        stream = stream or Socket(CLIENT)
        headers = [(":method", "CONNECT"), (":protocol", protocol), (":scheme", "http"),
                   (":authority", self.authority), (":path", path), *more]
        if protocol == "websocket":
            headers.append(("sec-websocket-version", "13"))
        return self.request(headers, stream, False), stream

    def say(self, number, stream, message):
        with self.changed:
            if isinstance(message, str):
                stream.protocol.send_text(message.encode())
            else:
                stream.protocol.send_binary(message)
            frames = b"".join(stream.protocol.data_to_send())
        self.send(number, frames)

    def hear(self, stream):
        """The next message."""
        def whole():
            return any(frame.fin for frame in stream.frames) or stream.over
        self.wait(whole)
        with self.changed:
            data = b""
            while stream.frames:
                frame = stream.frames.pop(0)
                data += frame.data
                if frame.fin:
                    return data
        raise AssertionError(f"no message: {stream.over}")


def serve(port, advertise):
    """Echoes WebSocket messages; other protocols' bytes as they are. `/forbidden` is refused."""
    listener = socket.create_server(("", port), backlog=512, family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve_one, args=[sock, advertise], daemon=True).start()


class Echo(Socket):
    """The server's side of a stream."""

    def __init__(self, connection, number, raw):
        super().__init__(SERVER)
        self.connection, self.number, self.raw = connection, number, raw
        self.kind, self.message = None, b""

    def on_data(self, data):
        if self.raw:
            return self.connection.send(self.number, data)
        self.protocol.receive_data(data)
        for frame in self.protocol.events_received():
            if frame.opcode in (1, 2):
                self.kind = frame.opcode
            if frame.opcode not in (0, 1, 2):
                continue
            self.message += frame.data
            if frame.fin:
                self.answer(self.message)
                self.message = b""
        end = False
        out = b""
        for part in self.protocol.data_to_send():
            out += part
            end |= part == b""
        self.connection.send(self.number, out, end)

    def answer(self, message):
        if message == b"close please":
            self.protocol.send_close(4001, "as asked")
        elif self.kind == 1:
            self.protocol.send_text(message)
        else:
            self.protocol.send_binary(message)


def serve_one(sock, advertise):
    settings = {CONNECT_PROTOCOL: 1} if advertise else None
    connection = Connection(sock, False, settings)
    connection.changed = threading.Condition(threading.RLock())

    def on_request(number, head):
        protocol, path = head.get(":protocol"), head.get(":path")
        if head[":method"] != "CONNECT":
            connection.h2.send_headers(number, [(":status", "200")])
            return connection.send(number, b"plain", end=True)
        if path == "/forbidden":
            connection.h2.send_headers(number, [(":status", "403")])
            return connection.send(number, b"not here", end=True)
        forbidden = {"upgrade", "connection", "sec-websocket-key"} & set(head)
        status = "400" if forbidden or head.get("host") else "200"
        connection.streams[number] = Echo(connection, number, protocol != "websocket")
        connection.h2.send_headers(number, [(":status", status), ("x-protocol", protocol or "none")],
                                   end_stream=status != "200")

    connection.run(on_request)
