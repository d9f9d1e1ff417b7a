"""Sends the requests of a corpus (http1.txt, http2.txt), or those that answering.py answers as answers.txt says, in
HTTP/1 or HTTP/2; each over a connection of its own, and after each an ordinary request, its victim, over another.
Prints one JSON list: of each entry its name, its `{id}`, what is expected, and the answers: [status, body]..., where the
connection or stream ended otherwise with a word for that.
Everything is sent in pieces of so many bytes, or whole with 0.
Usage: send.py CORPUS VERSION PIECE HOST PORT PREFIX [IDENTITY.json ALPN SERVER_NAME]"""

import concurrent.futures
import json
import pathlib
import re
import socket
import struct
import sys
import time

import hpack

from corpus import entries, filled, http1_bytes, plain

sys.path.append(str(pathlib.Path(__file__).parent.parent / "identity"))
import own  # noqa: E402

CORPUS, VERSION, PIECE, HOST, PORT, PREFIX, *PEER = sys.argv[1:]
AT_A_TIME = 20
# Of silence: then the client ends its sending, and after the same time again it leaves.
SILENCE = 2
# More than the answer must not come.
AFTERWARDS = 0.2
# What answering.py says a tenth of a second later has come after this.
LATE = 0.4


def connect():
    sock = socket.create_connection((HOST, int(PORT)), timeout=20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if PEER:
        identity, protocol, name = PEER
        sock = own.tls(identity, protocol).wrap_socket(sock, server_hostname=name)
    return sock


def send_all(sock, data):
    piece = int(PIECE) or len(data)
    for start in range(0, len(data), piece):
        sock.sendall(data[start:start + piece])


def http1_answers(data, method):
    """The whole final answers in some bytes."""
    answers = []
    while found := re.match(rb"HTTP/1\.[01] (\d{3})[^\r]*\r\n(.*?)\r\n\r\n|HTTP/1\.[01] (\d{3})[^\r]*\r\n\r\n", data, re.S):
        status, fields, rest = int(found[1] or found[3]), found[2] or b"", data[found.end():]
        length = re.search(rb"(?:\A|\n)content-length: *(\d+)", fields, re.I)
        if status < 200:
            data = rest
            continue
        if method == b"HEAD" or status in (204, 304):
            body, data = b"", rest
        elif re.search(rb"(?:\A|\n)transfer-encoding: *chunked", fields, re.I):
            body, data = dechunked(rest)
        else:
            end = int(length[1]) if length else len(rest)
            body, data = (rest[:end], rest[end:]) if len(rest) >= end else (None, b"")
        if body is not None:
            answers.append([status, body.decode("latin-1")])
    return answers


def dechunked(data):
    """A whole body without trailers, and what follows it."""
    body = b""
    while found := re.match(rb"([0-9a-fA-F]+)\r\n", data):
        end = found.end() + int(found[1], 16)
        body, data = body + data[found.end():end], data[end + 2:]
        if found[1] == b"0":
            return body, data
    return None, b""


def http1(data, wanted=1, afterwards=AFTERWARDS):
    method, received, ended, half = data.split(b" ")[0].strip(), b"", None, False
    sock = connect()
    try:
        send_all(sock, data)
        while not ended:
            sock.settimeout(afterwards if len(http1_answers(received, method)) >= wanted else SILENCE)
            try:
                more = sock.recv(65536)
            except TimeoutError:
                if len(http1_answers(received, method)) >= wanted:
                    break
                ended = "silent" if half else None
                if not half:
                    socket.socket.shutdown(sock, socket.SHUT_WR)
                half = True
                continue
            received += more
            ended = None if more else "ended"
    except OSError as error:
        ended = type(error).__name__
    finally:
        sock.close()
    answers = http1_answers(received, method)
    return answers or [ended]


def frame(kind, flags, payload=b"", stream=1):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def block(fields):
    """Literals without indexing, as they are."""
    number = hpack.hpack.encode_integer
    return b"".join(b"\0" + bytes(number(len(part[0]), 7)) + part[0] + bytes(number(len(part[1]), 7)) + part[1]
                    for part in fields)


def http2_bytes(lines):
    first = re.match(r"(\S+) (.+)\Z", lines[0])
    fields = []
    if lines[0] != "-":
        fields = [(b":method", plain(first[1])), (b":scheme", b"http"), (b":authority", b"web"), (b":path", plain(first[2]))]
    out, flags, kind = b"", 0x4, None

    def head():
        return frame(1, flags, block(fields))

    for line in lines[1:]:
        if line == "> end":
            flags |= 0x1
        elif line.startswith("> data"):
            out, fields = out + (head() if fields else b""), []
            data = plain(line.split(" ", 2)[2] if line.count(" ") > 1 else "")
            out += frame(0, 0x1 if line.startswith("> data-end") else 0, data)
        elif line in ("> trailers", "> open-trailers"):
            out, fields, flags = out + (head() if fields else b""), [], 0x5 if line == "> trailers" else 0x4
        else:
            # The first colon may be a pseudo-header field's own.
            found = re.match(r"(:?[^:]*):(?: (.*))?\Z", line)
            fields.append((plain(found[1]), plain(found[2] or "")))
    return out + (head() if fields else b"")


class Answer:
    """What comes on the first stream."""

    def __init__(self):
        self.decoder, self.status, self.body, self.over, self.data = hpack.Decoder(), None, b"", None, b""

    def take(self, sock, data):
        self.data += data
        while len(self.data) >= 9 and len(self.data) >= 9 + (length := int.from_bytes(self.data[:3], "big")):
            kind, flags, stream = self.data[3], self.data[4], int.from_bytes(self.data[5:9], "big")
            payload, self.data = self.data[9:9 + length], self.data[9 + length:]
            if kind in (4, 6) and not flags & 1:
                sock.sendall(frame(kind, 1, payload if kind == 6 else b"", 0))
            elif kind == 7:
                self.over = self.over or "goaway"
            elif stream == 1 and kind == 3:
                self.over = "reset"
            elif stream == 1 and kind == 1:
                status = dict(self.decoder.decode(payload)).get(":status")
                self.status = int(status) if status and not status.startswith("1") else self.status
            elif stream == 1 and kind == 0:
                self.body += payload
            if stream == 1 and kind in (0, 1) and flags & 1:
                self.over = "end"


def http2(data):
    sock, answer = connect(), Answer()
    try:
        send_all(sock, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, b"", 0) + data)
        sock.settimeout(SILENCE)
        while not answer.over:
            if not (more := sock.recv(65536)):
                answer.over = "ended"
            answer.take(sock, more)
    except OSError as error:
        answer.over = type(error).__name__
    finally:
        sock.close()
    return [[answer.status, answer.body.decode("latin-1")]] if answer.over == "end" else [answer.over]


def ask(method, target, **more):
    """An ordinary request."""
    if VERSION == "1":
        return http1(f"{method} {target} HTTP/1.1\r\nHost: web\r\n\r\n".encode(), **more)
    return http2(http2_bytes([f"{method} {target}", "> end"]))


def send(numbered):
    number, (name, expectation, lines) = numbered
    mark = f"{PREFIX}.{number}."
    lines = [filled(line, mark) for line in lines]
    # Blanks part the words of an expectation, and are escaped inside of them.
    expected = [plain(word).decode("latin-1") for word in filled(expectation, mark).split(" ")]
    try:
        if CORPUS == "answers.txt":
            answers = ask(lines[0], f"/a-{mark}")
        elif VERSION == "1":
            answers = http1(http1_bytes(lines), 2 if expected[0] == "two" else 1)
        else:
            answers = http2(http2_bytes(lines))
        if "> wait" in lines:
            time.sleep(LATE)
        victim = ask("GET", f"/victim-{mark}", afterwards=0.01)
    except Exception as error:  # the entry is named
        raise RuntimeError(name) from error
    return dict(name=name, id=mark, expected=expected, answers=answers, victim=victim)


# An answer that comes late is nobody's only while nobody asks over its connection: HTTP/1 has no numbers. What the
# client speaks makes no difference to that.
late, others = [], []
for entry in enumerate(entries(CORPUS)):
    (late if "> wait" in entry[1][2] else others).append(entry)
with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as threads:
    done = list(threads.map(send, others))
if VERSION == "1":
    done += map(send, late)
print(json.dumps(done))
