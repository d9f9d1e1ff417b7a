"""Asks for paths byte for byte, each over a connection of its own.

ask.py HOST PORT FILE: the file holds a JSON list of paths; printed is a JSON list of {"status",
"reason", "handler", "raw"} in the same order.
"""

import http.client
import json
import socket
import sys


def ask(host, port, path):
    with socket.create_connection((host, port), timeout=20) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode("latin-1"))
        response = http.client.HTTPResponse(connection, method="GET")
        response.begin()
        response.read()
        get = lambda name: response.getheader(name)
        return {
            "status": response.status,
            "reason": get("weft-reason"),
            "handler": get("x-handler"),
            "raw": get("x-raw"),
        }


host, port = sys.argv[1], int(sys.argv[2])
with open(sys.argv[3]) as file:
    print(json.dumps([ask(host, port, path) for path in json.load(file)]))
