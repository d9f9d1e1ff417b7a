"""Says who was reached: `ports.py serve NAME 80/tcp 53/udp …` answers every connection and datagram
with its name and port; `ports.py ask HOST,PORT,PROTOCOL …` prints what answered each, as JSON."""
import json
import selectors
import socket
import sys


def listen(kind, port):
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        sock.listen(64)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    return sock


def serve(name, ports):
    selector = selectors.DefaultSelector()
    for text in ports:
        port, protocol = text.split("/")
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        answer = f"{name} {port}".encode()
        selector.register(listen(kind, int(port)), selectors.EVENT_READ, answer)
    print("serving", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj.type == socket.SOCK_STREAM:
                conn, _peer = key.fileobj.accept()
                conn.sendall(key.data)
                conn.close()
            else:
                # Answered from the address that was asked: a redirected question came to loopback.
                _query, asked, _flags, peer = key.fileobj.recvmsg(2048, socket.CMSG_SPACE(20))
                source = [(level, kind, data[:16] + bytes(4)) for level, kind, data in asked]
                key.fileobj.sendmsg([key.data], source, 0, peer)


def ask(target):
    host, port, protocol = target.split(",")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(family, kind) as sock:
            sock.settimeout(3)
            sock.connect((host, int(port)))
            if kind == socket.SOCK_DGRAM:
                sock.send(b"who?")
            return sock.recv(100).decode()
    except OSError as error:
        return type(error).__name__


if sys.argv[1] == "serve":
    serve(sys.argv[2], sys.argv[3:])
else:
    print(json.dumps({target: ask(target) for target in sys.argv[2:]}))
