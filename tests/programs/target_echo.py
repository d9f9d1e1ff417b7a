"""An HTTP/1.1 server that answers with what it was asked: the request line, the host and the fields of the
mesh. Usage: target_echo.py PORT"""

import socket
import sys
import threading


def serve(client):
    kept = b""
    while True:
        while b"\r\n\r\n" not in kept:
            data = client.recv(65536)
            if not data:
                return client.close()
            kept += data
        head, kept = kept.split(b"\r\n\r\n", 1)
        lines = head.split(b"\r\n")
        fields = [line for line in lines[1:] if line.lower().startswith((b"host:", b"weft-target"))]
        body = b" | ".join([lines[0]] + fields) + b"\n"
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


listener = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    accepted, _ = listener.accept()
    threading.Thread(target=serve, args=[accepted], daemon=True).start()
