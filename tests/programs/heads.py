"""Heads in HTTP/1.1 byte by byte, on raw sockets: how names are spelled, their order, the reason phrase.

Usage: heads.py serve PORT        answers with the head of the request, and the head that its target names
       heads.py ask HOST PORT     checks what arrives, in both directions
       heads.py ask2 HOST PORT    asks an application in HTTP/2 (heads_app.js), which must not see the form"""

import json
import socket
import sys
import threading

# By target: the first line and the fields of an answer, without those of the hop.
ANSWERS = {
    "/plain": ["200 OK", "Server: a", "Content-Type: text/plain", "ETag: b"],
    "/lower": ["200 OK", "server: a", "content-type: text/plain"],
    "/odd": ["200 OK", "sERVER: a", "x-A: 1", "X-b: 2"],
    "/cookies": ["200 OK", "Set-Cookie: a=1", "X-A: 1", "set-cookie: b=2", "X-B: 2", "X-a: 3", "Set-Cookie: c=3"],
    "/then": ["200 OK then", "Server: a"],
    "/empty": ["404 ", "Server: a"],
    "/obs": ["500 Nicht m\xf6glich \"\xff\"", "Server: a"],
    "/own": ["200 Own", "Server: a", "Weft-Http1-Form: l\"Mine\"", "weft_http1_form: l\"Mine\""],
}
# A name that frames is in the style of most names, however it is spelled.
LENGTH = {"/lower": "content-length"}
# What is not the application's to say.
OWN = ["Weft-Http1-Form", "weft_http1_form"]

REQUESTS = {
    "title": ["Host: a", "User-Agent: b", "Accept: */*", "X-Request-3d: 1"],
    "lower": ["host: a", "user-agent: b", "accept: */*"],
    "odd": ["HOST: a", "uSER-aGENT: b", "X-A: 1", "x-b: 2", "X_c.d: 3"],
    "java": ["Connection: Upgrade, HTTP2-Settings", "Content-Length: 0", "Host: a",
             "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA", "Upgrade: h2c", "User-Agent: Java-http-client/21"],
    "browser": ["Host: a", "Connection: keep-alive", "sec-ch-ua: \"x\"", "DNT: 1", "User-Agent: b", "Accept: c",
                "Sec-Fetch-Site: none", "Keep-Alive: 5", "Accept-Language: en", "Cookie: a=b; c=d"],
    "interleaved": ["X-A: 1", "X-B: 2", "x-a: 3", "X-A: 4", "x-B: 5", "Host: a"],
    "last": ["User-Agent: b", "Accept: c", "Accept-Encoding: d", "hOST: a"],
    "own": ["Host: a", "Weft-Http1-Form: l:uSER-aGENT", "weft-http1-form: t\"x\"", "User-Agent: b", "weft_http1_form: l",
            "X-Forwarded-Client-Cert: x", "Accept: c"],
    "nominated": ["X-Own: 1", "X-A: 2", "Connection: x-own", "Host: a", "X-B: 3"],
}
GONE = ["connection", "http2-settings", "upgrade", "keep-alive", "weft-http1-form", "weft_http1_form",
        "x-forwarded-client-cert", "x-own"]
ADDED = ["connection", "transfer-encoding", "x-forwarded-client-cert", "traceparent", "tracestate", "weft-deadline",
         "weft-hops", "weft-expect"]


def name(line):
    return line.partition(":")[0]


def read_head(sock, kept=b""):
    while b"\r\n\r\n" not in kept:
        data = sock.recv(65536)
        if not data:
            return None, b""
        kept += data
    head, _, rest = kept.partition(b"\r\n\r\n")
    return head.decode("latin-1").split("\r\n"), rest


def answer(sock):
    kept = b""
    while True:
        lines, kept = read_head(sock, kept)
        if lines is None:
            return sock.close()
        body = json.dumps(lines).encode()
        status, *fields = ANSWERS.get(lines[0].split(" ")[1], ANSWERS["/plain"])
        middle = len(fields) // 2
        of_hop = ["Connection: keep-alive", "Keep-Alive: timeout=5"]
        fields = fields[:middle] + of_hop + fields[middle:] + [f"Content-Length: {len(body)}"]
        sock.sendall("\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode("latin-1") + body)


def serve(port):
    listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        accepted, _ = listener.accept()
        threading.Thread(target=answer, args=[accepted], daemon=True).start()


def ask(host, port, target, fields):
    """The lines of the head that the application saw, and those of its answer."""
    with socket.create_connection((host, port), timeout=20) as sock:
        sock.sendall("\r\n".join([f"GET {target} HTTP/1.1", *fields, "", ""]).encode("latin-1"))
        head, body = read_head(sock)
        length = next(int(line.split(":")[1]) for line in head if name(line).lower() == "content-length")
        while len(body) < length:
            data = sock.recv(65536)
            if not data:
                break
            body += data
        return body, head


def request_check(host, port, what):
    def check():
        fields = [field.replace(": a", f": {host}:{port}") if name(field).lower() == "host" else field
                  for field in REQUESTS[what]]
        body, _ = ask(host, port, "/plain", fields)
        seen = json.loads(body)[1:]
        equal([line for line in seen if name(line).lower() not in ADDED],
              [field for field in fields if name(field).lower() not in GONE])
        for line in seen:
            if "weft-http1-form" in line.lower() or "weft_http1_form" in line.lower():
                raise AssertionError(f"the application sees {line}")
    return check


def answer_check(host, port, target):
    def check():
        _, head = ask(host, port, target, [f"Host: {host}:{port}"])
        status, *fields = ANSWERS[target]
        length = next(line for line in head if name(line).lower() == "content-length")
        expected = [f"HTTP/1.1 {status}"] + [field for field in fields if name(field) not in OWN]
        equal(head, expected + [f"{LENGTH.get(target, 'Content-Length')}: {length.split(': ')[1]}"])
    return check


def form_stays(host, port):
    body, head = ask(host, port, "/", ["Host: a", "uSER-aGENT: b", "X-A: 1", "X-B: 2", "X-A: 3"])
    for line in json.loads(body) + head:
        if "http1-form" in line.lower():
            raise AssertionError(f"{line} is seen")
    # The application's own form is nobody's.
    equal(head[0], "HTTP/1.1 200 OK")
    equal([line for line in head if line.lower().startswith("server:")], ["server: a"])


if __name__ == "__main__":
    how, *rest = sys.argv[1:]
    if how == "serve":
        serve(int(rest[0]))
    from checks import equal, run
    host, port = rest[0], int(rest[1])
    if how == "ask2":
        run([("form", lambda: form_stays(host, port))])
    run([(what, request_check(host, port, what)) for what in REQUESTS]
        + [(target, answer_check(host, port, target)) for target in ANSWERS])
