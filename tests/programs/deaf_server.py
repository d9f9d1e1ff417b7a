"""A server that reads the name of each client, sixteen bytes, and nothing after it. Prints `NAME closed`
when a connection has ended. Usage: deaf_server.py PORT"""

import select
import socket
import sys
import threading


def serve(connection):
    name = connection.recv(16, socket.MSG_WAITALL).decode().strip()
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    poll.poll()
    print(f"{name} closed", flush=True)


listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
