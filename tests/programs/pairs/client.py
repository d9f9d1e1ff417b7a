"""The clients of the pairs (scenarios.txt) on Python's http.client (mode py), on curl (curl-1.0, curl-1.1,
curl-2: prior knowledge), and on raw sockets (raw: what libraries do not do; fresh: many connections).
Usage: client.py HOST SCENARIOS MODE:PORT..."""

import hashlib
import http.client
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

HOST, FILE = sys.argv[1:3]
HOP = re.compile("date|connection|keep-alive|transfer-encoding|trailer", re.I)
LIMIT = 30


def pattern(n):
    return (b"0123456789abcdef" * (n // 16 + 1))[:n]


class Scenario:
    def __init__(self, line):
        self.name, self.method, self.target, *options = line.split()
        self.fields, self.options = [("user-agent", "pairs")], {}
        for option in options:
            key, _, value = option.partition("=")
            if key == "header":
                name, _, content = value.partition(":")
                self.fields.append((name, content.replace("_", " ")))
            elif key == "big":
                self.fields.append(("x-big", "b" * int(value)))
            else:
                self.options[key] = value
        self.body = pattern(int(self.options["body"])) if "body" in self.options else None
        self.times = int(self.options.get("times", 1))


def lines(kind, fields):
    fields = [(name.lower(), value) for name, value in fields if not HOP.fullmatch(name)]
    return "".join(f"{kind} {name}: {value}\n" for name, value in sorted(fields, key=lambda field: field[0]))


def described(status, version, hints, fields, body, trailers=()):
    text = f"status {status} HTTP/{version}\n{hints}{lines('field', fields)}"
    text += f"body {len(body)} {hashlib.sha256(body).hexdigest()}\n"
    if len(body) < 10000 and not any(name.lower() == "content-encoding" for name, _ in fields):
        text += body.decode("latin-1")
    return text + lines("trailer", trailers)


def py(s, connection):
    connection.putrequest(s.method, s.target, skip_accept_encoding=True)
    chunked = "chunked" in s.options
    fields = list(s.fields)
    if s.body is not None:
        fields.append(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(s.body))))
    for name, value in fields:
        connection.putheader(name, value)
    connection.endheaders()
    try:
        if s.body is not None:
            connection.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(s.body), s.body) if chunked and s.body
                            else b"0\r\n\r\n" if chunked else s.body)
    except ConnectionError:
        pass  # an answer may have come before
    response = connection.getresponse()
    body = b""
    if "slow" in s.options:
        while part := response.read(65536):
            body += part
            time.sleep(0.004)
    else:
        body = response.read()
    return described(response.status, 1, "", response.getheaders(), body)


def observe_py(s, port):
    connection = http.client.HTTPConnection(HOST, port, timeout=LIMIT)
    last, connections = None, set()
    for _ in range(s.times):
        if connection.sock is None:
            connection.connect()
        connections.add(connection.sock)
        found = py(s, connection)
        if last not in (None, found):
            return f"different answers:\n{last}{found}"
        last = found
    connection.close()
    return last + (f"connections {len(connections)}\n" if s.times > 1 else "")


def observe_curl(s, port, flag):
    url = f"http://{HOST}:{port}{s.target}"
    with tempfile.NamedTemporaryFile() as heads, tempfile.NamedTemporaryFile() as upload:
        command = ["curl", flag, "--silent", "--show-error", "--max-time", str(LIMIT), "--path-as-is", "--globoff",
                   "--expect100-timeout", "1", "-D", heads.name]
        command += ["--head"] if s.method == "HEAD" else ["-X", s.method]
        for name, value in s.fields:
            command += ["-H", f"{name}: {value}" if value else f"{name};"]
        if s.body is not None:
            upload.write(s.body)
            upload.flush()
            command += ["--data-binary", f"@{upload.name}", "-H", "content-type:",
                        "-H", "expect: 100-continue" if "expect" in s.options else "expect:"]
            command += ["-H", "transfer-encoding: chunked"] if "chunked" in s.options else []
        if "slow" in s.options:
            command += ["--limit-rate", "12M"]
        if s.times > 1:
            command += ["--write-out", "connections %{num_connects}\n"]
        done = subprocess.run([*command, *[url] * s.times], capture_output=True)
        if done.returncode:
            raise OSError(done.stderr.decode())
        blocks = [block.split("\r\n") for block in heads.read().decode("latin-1").split("\r\n\r\n") if block]
    if s.times > 1:
        statuses = "".join(f"{block[0].split(' ')[1]} " for block in blocks)
        connections = len(re.findall("^connections 1", done.stdout.decode("latin-1"), re.M))
        return f"{statuses}\nconnections {connections}\n"
    hints = trailers = ""
    found = None
    for first, *rest in blocks:
        fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in rest)]
        if not first.startswith("HTTP/"):
            name, _, value = first.partition(":")
            trailers = [(name, value.strip()), *fields]
        elif " 1" in first[:10]:
            status = first.split(" ")[1]
            hints += "" if status == "100" else f"hint {status}\n{lines('hint', fields)}"
        else:
            found = (first.split(" ")[1], first[5], fields)
    status, version, fields = found
    body = b"" if s.method == "HEAD" else done.stdout
    return described(status, version, hints, fields, body, trailers)


def spoken(port, sent, half_closed=False, count=1):
    """Sends bytes, and reads until so many final answers have come, or the end."""
    with socket.create_connection((HOST, port), timeout=LIMIT) as sock:
        for part in sent:
            sock.sendall(part)
            time.sleep(0.03 if len(sent) > 1 else 0)
        if half_closed:
            sock.shutdown(socket.SHUT_WR)
        file = sock.makefile("rb")
        answers = []
        while len(answers) < count and (line := file.readline()):
            status = int(line.split(b" ")[1])
            fields = http.client.parse_headers(file)
            length = fields.get("content-length")
            chunked = "chunked" in (fields.get("transfer-encoding") or "")
            body = b""
            if status < 200:
                continue
            if chunked:
                while size := int(file.readline().split(b";")[0], 16):
                    body += file.read(size)
                    file.readline()
                http.client.parse_headers(file)
            elif status not in (204, 304):
                body = file.read(int(length)) if length is not None else file.read()
            answers.append(f"{status} {body[:2000].decode('latin-1')}")
        if count > len(answers):
            answers.append("end")
        return "\n".join(answers)


def raw(port):
    """NAME, what was seen: what HTTP/1 clients may do and libraries hardly ever do."""
    host = f"Host: {HOST}:{port}\r\n".encode()
    get = b"GET /report HTTP/1.1\r\n" + host + b"\r\n"
    post = b"POST /report HTTP/1.1\r\n" + host
    keep = b"GET /report HTTP/1.0\r\n" + host + b"Connection: keep-alive\r\n\r\n"
    yield "pipelined", lambda: spoken(port, [get * 10], count=10)
    yield "pipelined-posts", lambda: spoken(port, [(post + b"Content-Length: 5\r\n\r\nhello") * 10], count=10)
    yield "pipelined-mixed", lambda: spoken(port, [
        (post + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + get) * 5], count=10)
    yield "http-1.0", lambda: spoken(port, [b"GET /report HTTP/1.0\r\n" + host + b"\r\n"], count=2)
    yield "http-1.0-post", lambda: spoken(port, [
        b"POST /report HTTP/1.0\r\n" + host + b"Content-Length: 5\r\n\r\nhello"], count=2)
    yield "http-1.0-chunked-answer", lambda: spoken(port, [b"GET /chunked?n=100 HTTP/1.0\r\n" + host + b"\r\n"], count=2)
    yield "http-1.0-keep-alive", lambda: spoken(port, [keep, keep, keep], count=3)
    yield "close", lambda: spoken(port, [get.replace(host, host + b"Connection: close\r\n")], count=2)
    yield "half-closed", lambda: spoken(port, [get], half_closed=True, count=2)
    yield "half-closed-slow", lambda: spoken(port, [get.replace(b"/report", b"/slow?ms=300")], half_closed=True, count=2)
    yield "half-closed-post", lambda: spoken(
        port, [post + b"Content-Length: 5\r\n\r\nhello"], half_closed=True, count=2)
    yield "in-pieces", lambda: spoken(port, [get[:5], get[5:30], get[30:-1], get[-1:]])
    yield "body-in-pieces", lambda: spoken(port, [post + b"Content-Length: 5\r\n\r\n", b"he", b"l", b"lo"])
    yield "absolute", lambda: spoken(port, [get.replace(b"/report", f"http://{HOST}:{port}/report?a".encode())])
    yield "options-all", lambda: spoken(port, [b"OPTIONS * HTTP/1.1\r\n" + host + b"\r\n"])
    yield "empty-line-first", lambda: spoken(port, [b"\r\n" + get])
    yield "other-host", lambda: spoken(port, [get.replace(host, b"Host: virtual.example\r\n")])
    yield "latin-1", lambda: spoken(port, [get.replace(host, host + b"x-twice: caf\xe9\r\n")])
    yield "extension", lambda: spoken(port, [
        post + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n"])
    yield "upgrade-declined", lambda: spoken(port, [
        get.replace(host, host + b"Connection: Upgrade\r\nUpgrade: websocket\r\n")])


def fresh(port):
    """POSTs on connections of their own, many at once, at the moment at which idle connections of the
    server end (1.2 s)."""
    def post(_):
        with socket.create_connection((HOST, port), timeout=LIMIT) as sock:
            head = f"POST /report HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
            sock.sendall(head.encode() + b"hello")
            answer = b""
            while part := sock.recv(65536):
                answer += part
        return answer.split(b"\r\n")[0].decode()

    answers = []
    with ThreadPoolExecutor(30) as pool:
        for gap in (1.19, 1.195, 1.2, 1.205):
            answers += pool.map(post, range(30))
            time.sleep(gap)
        answers += pool.map(post, range(30))
    return str({answer: answers.count(answer) for answer in sorted(set(answers))})


CURL = {"curl-1.0": "--http1.0", "curl-1.1": "--http1.1", "curl-2": "--http2-prior-knowledge"}


def attempt(what, name, port):
    try:
        return what().replace(HOST, "HOST")
    except Exception as error:  # which one is the library's affair
        print(port, name, repr(error), file=sys.stderr)
        return "error"


def say(mode, port, name, found):
    sys.stdout.write(f"{mode}\t{port}\t{name}\t{json.dumps(found)}\n")


def ask_all(mode, port):
    if mode == "fresh":
        return say(mode, port, "posts", attempt(lambda: fresh(port), "posts", port))
    if mode == "raw":
        for name, what in raw(port):
            say(mode, port, name, attempt(what, name, port))
        return
    with open(FILE) as file:
        scenarios = [Scenario(line) for line in file if line.strip() and not line.startswith("#")]
    for s in scenarios:
        if mode == "curl-1.0" and s.options.keys() & {"chunked", "expect"}:
            continue
        # curl 7.88 takes an early answer in HTTP/2 for an error, or not; nginx gives one to every body.
        if mode == "curl-2" and s.body and (s.target == "/early" or port in (8107, 8117)):
            continue
        if mode == "py" and "expect" in s.options:
            continue
        ask = (lambda: observe_curl(s, port, CURL[mode])) if mode in CURL else (lambda: observe_py(s, port))
        say(mode, port, s.name, attempt(ask, s.name, port))


with ThreadPoolExecutor(8) as pool:
    for future in [pool.submit(ask_all, mode, int(port)) for mode, port in (word.split(":") for word in sys.argv[3:])]:
        future.result()
