"""An application in HTTP/1.1 whose answers are those of answers.txt, byte by byte, and go on over the same connection:
`/….NUMBER.` of a target that begins with /a- asks for the entry with this number, any other target is the answer.
Usage: answering.py PORT"""

import re
import socket
import sys
import threading
import time

from corpus import entries, filled, http1_bytes

ANSWERS = [lines[1:] for _, _, lines in entries("answers.txt")]


def answer(sock, lines):
    """Whether the connection goes on."""
    part = []
    for line in [*lines, "> go on"]:
        if not line.startswith("> "):
            part.append(line)
            continue
        sock.sendall(http1_bytes(part))
        part = []
        if line == "> wait":
            time.sleep(0.1)
        if line == "> close":
            sock.shutdown(socket.SHUT_WR)
            return False
    return True


def serve(sock):
    kept = b""
    try:
        while True:
            while b"\r\n\r\n" not in kept:
                data = sock.recv(65536)
                if not data:
                    return
                kept += data
            head, kept = kept.split(b"\r\n\r\n", 1)
            target = head.split(b" ")[1].decode("latin-1")
            number = re.match(r".*/a-.*\.(\d+)\.", target)
            if number:
                lines = [filled(line, target) for line in ANSWERS[int(number[1])]]
                if not answer(sock, lines):
                    while sock.recv(65536):
                        pass
                    return
            else:
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(target) + target.encode("latin-1"))
    except OSError:
        pass
    finally:
        sock.close()


listener = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
while True:
    accepted, _ = listener.accept()
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=[accepted], daemon=True).start()
