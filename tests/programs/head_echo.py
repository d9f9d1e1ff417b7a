"""An HTTP/1.1 server that answers with the head that it was sent, and agrees to `Upgrade: echo`.
Usage: head_echo.py PORT"""

import re
import socket
import sys
import threading

AGREED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"


def serve(client):
    kept = b""
    while True:
        while b"\r\n\r\n" not in kept:
            data = client.recv(65536)
            if not data:
                return client.close()
            kept += data
        head, kept = kept.split(b"\r\n\r\n", 1)
        if re.search(rb"\r\nupgrade: echo", head, re.I):
            client.sendall(AGREED)
            return client.close()
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.I)
        length = int(length[1]) if length else 0
        while len(kept) < length:
            kept += client.recv(65536)
        kept = kept[length:]
        client.sendall(b"HTTP/1.1 200 As You Like\r\ncontent-length: %d\r\n\r\n" % len(head) + head)


listener = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
while True:
    accepted, _ = listener.accept()
    threading.Thread(target=serve, args=[accepted], daemon=True).start()
