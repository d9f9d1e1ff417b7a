"""Sends odd beginnings of requests that name a caller; prints what was answered to each, by name.

beginnings.py HOST PORT CALLER PAUSE_MS [IDENTITY_JSON]: each on a connection of its own. With a pause, nothing
is sent for so long at first, and then the beginning in two pieces. With a workload's own identity, everything
goes through TLS as another sidecar's `weft-tcp`.
"""

import concurrent.futures
import json
import socket
import ssl
import sys
import time

import own

CALLER = sys.argv[3]
FIELD = f"X-Forwarded-Client-Cert: {CALLER}"
TIMEOUT = 2


def beginnings():
    """Name and bytes of each."""
    yield "plain", b"GET / HTTP/1.1\r\nHost: a\r\n"
    for method in ["get", "Get", "gET", "FOO", "foo", "M-SEARCH", "PRI", "G!T", "G.T", "", "\u00c9T", "A" * 40, "QUERY"]:
        yield f"method {method}", f"{method} / HTTP/1.1\r\nHost: a\r\n".encode("latin-1")
    for lead in ["\r\n", "\n", "\r", " ", "\t", "\r\n\r\n", "\n\n\n", "  ", "\0", "\x0b", "\xef\xbb\xbf", "\x1c", "\x16\x03\x01", "\x16\x03\x01\x00\x05", "\x80\x01", "*1\r\n", "x\r\n", "\xff\xfe"]:
        yield f"lead {lead!r}", lead.encode("latin-1") + b"GET / HTTP/1.1\r\nHost: a\r\n"
    for gap in ["  ", "\t", " \t", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\r", "\0"]:
        yield f"gap {gap!r}", f"GET{gap}/{gap}HTTP/1.1\r\nHost: a\r\n".encode("latin-1")
        yield f"first gap {gap!r}", f"GET{gap}/ HTTP/1.1\r\nHost: a\r\n".encode("latin-1")
    for target in ["*", "http://a/", "HTTP://a/", "ftp://a/", "a", "a:80", "", "?x", "\\", "//", "/ x", "/\xe9", "/\x01", "#", "/%zz", "rtsp://a/"]:
        yield f"target {target}", f"GET {target} HTTP/1.1\r\nHost: a\r\n".encode("latin-1")
    for version in ["HTTP/1.0", "HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/1.10", "http/1.1", "HTTP/1", "HTTP/11", "HTTPS/1.1", "HTTP/1.1 ", "ICE/1.0", "RTSP/1.0", "SIP/2.0", "x", "HTTP/9.9", "HTTP/01.01", "SOURCE"]:
        yield f"version {version}", f"GET / {version}\r\nHost: a\r\n".encode()
        yield f"foo version {version}", f"FOO /x {version}\r\nHost: a\r\n".encode()
    yield "0.9", b"GET /\r\n"
    yield "0.9 foo", b"FOO /\r\n"
    yield "0.9 space", b"GET / \r\n"
    for end in ["\n", "\r", "\r\r\n", " \r\n", "\n\r", "\0\r\n"]:
        yield f"end {end!r}", f"GET / HTTP/1.1{end}Host: a{end}".encode()
    yield "long method", b"A" * 9000 + b" / HTTP/1.1\r\nHost: a\r\n"
    yield "long target", b"GET /" + b"a" * 7000 + b" HTTP/1.1\r\nHost: a\r\n"
    yield "long lead", b"\r\n" * 5000 + b"GET / HTTP/1.1\r\nHost: a\r\n"
    yield "binary method", bytes(range(1, 32)) + b" / x\r\nHost: a\r\n"
    yield "redis", b"*1\r\n$4\r\nPING\r\n /x y\r\nHost: a\r\n"
    # A ClientHello in whose fields a lenient server finds a request line.
    random = b" /x HTTP/1.1\r\nA: ".ljust(32, b"a")
    session = b"b" * 30 + b"\r\n"
    extension = b"\r\n" + FIELD.encode() + b"\r\nConnection: close\r\n\r\n"
    extensions = b"\xff\xee" + len(extension).to_bytes(2, "big") + extension
    hello = b"\x03\x03" + random + b"\x20" + session + b"\x00\x02\x13\x01\x01\x00" + len(extensions).to_bytes(2, "big") + extensions
    shake = b"\x01" + len(hello).to_bytes(3, "big") + hello
    yield "client hello", b"\x16\x03\x01" + len(shake).to_bytes(2, "big") + shake


def http2():
    """HTTP/2 with prior knowledge."""
    from h2.connection import H2Connection

    connection = H2Connection()
    connection.initiate_connection()
    headers = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "a"), ("x-forwarded-client-cert", CALLER)]
    connection.send_headers(1, headers, end_stream=True)
    return connection.data_to_send()


def names():
    """The same name as servers fold it, and fields around it."""
    end = "Connection: close\r\n\r\n"
    for name in ["x_forwarded_client_cert", "X_Forwarded-client_CERT", "x.forwarded.client.cert", "X-Forwarded-Client-Cert "]:
        yield f"name {name}", f"GET / HTTP/1.1\r\nHost: a\r\n{name}: {CALLER}\r\n{end}"
    yield "twice", f"GET / HTTP/1.1\r\nHost: a\r\n{FIELD}\r\n{FIELD}\r\n{end}"
    yield "nominated", f"GET / HTTP/1.1\r\nHost: a\r\n{FIELD}\r\nConnection: close, x-forwarded-client-cert\r\n\r\n"
    yield "folded line", f"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n {FIELD}\r\n{end}"
    for announced in ["x-forwarded-client-cert", "x_forwarded_client_cert", "x-sum"]:
        for name in ["X-Forwarded-Client-Cert", "x_forwarded_client_cert"]:
            head = f"POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: {announced}\r\nTransfer-Encoding: chunked\r\n{end}"
            yield f"trailer {announced} {name}", f"{head}2\r\nhi\r\n0\r\n{name}: {CALLER}\r\nx-sum: 1\r\n\r\n"
    for target in ["a:80", "/"]:
        yield f"upgrade connect {target}", f"CONNECT {target} HTTP/1.1\r\nHost: a:80\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n{FIELD}\r\n{end}"
    for upgrade in ["h2c", "H2C", "h2c, x", "x, h2c-16", "HTTP/2.0", "TLS/1.2"]:
        head = f"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\n"
        yield f"upgrade {upgrade}", f"{head}HTTP2-Settings: AAMAAABk\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n{FIELD}\r\n{end}"


def ask(name, pieces, pause):
    host, port = sys.argv[1], int(sys.argv[2])
    try:
        with socket.create_connection((host, port), timeout=10) as stream:
            if len(sys.argv) > 5:
                stream = own.tls(sys.argv[5], "weft-tcp").wrap_socket(stream, server_hostname="a")
            stream.settimeout(TIMEOUT)
            if pause:
                time.sleep(pause)
            for piece in pieces:
                stream.sendall(piece)
                if pause:
                    time.sleep(pause)
            answer = b""
            while chunk := stream.recv(65536):
                answer += chunk
                if b"identity=" in answer and not name.startswith("upgrade"):
                    break
            return answer or b"(end)"
    except TimeoutError:
        return b"(silence)"
    except (OSError, ssl.SSLError) as error:
        return f"({type(error).__name__})".encode()


def main():
    pause = int(sys.argv[4]) / 1000
    end = f"{FIELD}\r\nConnection: close\r\n\r\n".encode()
    requests = {"http/2": http2()}
    for name, beginning in beginnings():
        requests[name] = beginning + (b"" if name == "client hello" else end)
    for name, request in names():
        requests[name] = request.encode()

    def one(item):
        name, request = item
        pieces = [request[:2], request[2:]] if pause else [request]
        return name, ask(name, pieces, pause).decode("latin-1")

    with concurrent.futures.ThreadPoolExecutor(160) as pool:
        print(json.dumps(dict(pool.map(one, requests.items()))))


main()
