"""Opens tunnels in HTTP/1.1 at one time and keeps them. Usage: tunnels.py HOST PORT COUNT ROUNDS

In each round it opens COUNT tunnels at once, sends through those that were opened, and ends them, each in another way:
FIN, a reset, an answer that is not read. Prints one JSON object a round: how often each answer (status and reason)
came, and how many of the tunnels carried their bytes there and back."""

import collections
import json
import socket
import struct
import sys
import threading

HOST, PORT, COUNT, ROUNDS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
HEAD = (f"GET /echo HTTP/1.1\r\nHost: {HOST}:{PORT}\r\nConnection: Upgrade\r\nUpgrade: weft-test\r\n\r\n").encode()


class Tunnel:
    def __init__(self):
        self.sock, self.said, self.carried = socket.create_connection((HOST, PORT), timeout=60), None, False

    def open(self):
        self.sock.sendall(HEAD)
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.sock.recv(65536)
            if not part:
                self.said = "closed"
                return
            data += part
        lines = data.split(b"\r\n\r\n")[0].decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        self.said = f"{lines[0].split(' ')[1]} {fields.get('weft-reason', '')}".strip()

    def carry(self):
        self.sock.sendall(b"x" * 1000)
        got = 0
        while got < 1000 and (part := self.sock.recv(65536)):
            got += len(part)
        self.carried = got == 1000

    def end(self, way):
        if way == 0:
            self.sock.shutdown(socket.SHUT_WR)
            self.sock.recv(1)
        elif way == 1:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.sock.sendall(b"unread")
        self.sock.close()


def at_once(tunnels, act):
    threads = [threading.Thread(target=act, args=[tunnel]) for tunnel in tunnels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


for _ in range(ROUNDS):
    tunnels = [Tunnel() for _ in range(COUNT)]
    at_once(tunnels, Tunnel.open)
    opened = [tunnel for tunnel in tunnels if tunnel.said.startswith("101")]
    at_once(opened, Tunnel.carry)
    for number, tunnel in enumerate(opened):
        tunnel.end(number % 3)
    for tunnel in tunnels:
        tunnel.sock.close()
    answers = collections.Counter(tunnel.said for tunnel in tunnels)
    print(json.dumps(dict(answers=answers, carried=sum(tunnel.carried for tunnel in opened))), flush=True)
