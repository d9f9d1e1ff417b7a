"""A peer of the mesh without a sidecar: it has a workload's own certificate and speaks to a sidecar.

mesh_peer.py IDENTITY.json ADDRESS:PORT SERVER_NAME TIMES METHOD PATH [FIELD...]: sends so many requests over each
of eight connections at the same time (ALPN weft-h1) and prints how they were answered, `STATUS:REASON` to how
often, and the seconds it took.
"""

import base64
import collections
import concurrent.futures
import json
import socket
import ssl
import sys
import tempfile
import time

IDENTITY, ADDRESS, NAME, TIMES, METHOD, PATH, *FIELDS = sys.argv[1:]
CONNECTIONS = 8


def pem(kind, text):
    der = base64.b64decode(text)
    lines = base64.encodebytes(der).decode()
    return f"-----BEGIN {kind}-----\n{lines}-----END {kind}-----\n"


def connect():
    with open(IDENTITY, encoding="utf-8") as file:
        saved = json.load(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Its name is a SPIFFE ID; who answers is not what is looked at here.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["weft-h1"])
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write("".join(pem("CERTIFICATE", der) for der in saved["chain"]))
        file.write(pem("PRIVATE KEY", saved["key"]))
        file.flush()
        context.load_cert_chain(file.name)
    host, _, port = ADDRESS.rpartition(":")
    stream = socket.create_connection((host.strip("[]"), int(port)), timeout=20)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(stream, server_hostname=NAME)


def answer(reader):
    status = int(reader.readline().split()[1])
    reason, length, chunked = "", 0, False
    while line := reader.readline().strip():
        name, _, value = line.decode().partition(":")
        match name.lower():
            case "weft-reason":
                reason = value.strip()
            case "content-length":
                length = int(value)
            case "transfer-encoding":
                chunked = True
    if chunked:
        while size := int(reader.readline(), 16):
            reader.read(size + 2)
        reader.readline()
    else:
        reader.read(length)
    return f"{status}:{reason}"


def storm(answers):
    stream = connect()
    reader = stream.makefile("rb")
    fields = "".join(f"{field}\r\n" for field in FIELDS)
    if METHOD != "GET":
        fields += "content-length: 0\r\n"
    request = f"{METHOD} {PATH} HTTP/1.1\r\nhost: {NAME}\r\n{fields}\r\n".encode()
    for _ in range(int(TIMES)):
        stream.sendall(request)
        answers.append(answer(reader))


def main():
    answers = []
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as threads:
        for done in [threads.submit(storm, answers) for _ in range(CONNECTIONS)]:
            done.result()
    seconds = time.monotonic() - began
    print(json.dumps(dict(answers=collections.Counter(answers), seconds=seconds)))


main()
