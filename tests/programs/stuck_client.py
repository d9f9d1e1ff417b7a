"""A client that sends its name, sixteen bytes, and more until nothing is taken any more: prints `stuck` then,
and `NAME closed` when the connection has ended. Usage: stuck_client.py HOST PORT NAME"""

import select
import socket
import sys

HOST, PORT, NAME = sys.argv[1:]
connection = socket.create_connection((HOST, int(PORT)), timeout=20)
connection.sendall(NAME.ljust(16).encode())
connection.settimeout(2)
try:
    while True:
        connection.sendall(bytes(1 << 20))
except TimeoutError:
    print("stuck", flush=True)
poll = select.poll()
poll.register(connection, select.POLLRDHUP)
poll.poll()
print(f"{NAME} closed", flush=True)
