"""A way into a connection between sidecars for programs that have no certificate: what comes in plaintext goes on
in TLS, with a workload's own identity.
Usage: relay.py LISTEN_PORT IDENTITY.json ALPN HOST PORT SERVER_NAME"""

import select
import socket
import ssl
import sys
import threading

import own

LISTEN, IDENTITY, PROTOCOL, HOST, PORT, NAME = sys.argv[1:]


def readable(sources):
    """Of the two sockets, those that have something: TLS may hold what no system call tells of."""
    pending = [source for source in sources if isinstance(source, ssl.SSLSocket) and source.pending()]
    return pending or select.select(sources, [], [])[0]


def relay(plain, context):
    try:
        stream = socket.create_connection((HOST, int(PORT)), timeout=20)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        secure = context.wrap_socket(stream, server_hostname=NAME)
        secure.settimeout(None)
        both = {plain: secure, secure: plain}
        while True:
            for source in readable(list(both)):
                data = source.recv(65536)
                if not data:
                    return
                both[source].sendall(data)
    except OSError:
        pass
    finally:
        plain.close()


identity = own.tls(IDENTITY, PROTOCOL)
listener = socket.create_server(("127.0.0.1", int(LISTEN)), backlog=128)
while True:
    accepted, _ = listener.accept()
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=relay, args=[accepted, identity], daemon=True).start()
