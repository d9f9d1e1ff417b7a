"""What a client says with the mesh's own field for the protocol that the application is spoken to in. Prints for each
spelling, first for a request and then for a tunnel, the status, the version that the application (tunnel_app.py) was
asked in and whether it saw the field. Usage: tunnel_fields.py HOST PORT"""

import socket
import sys

HOST, PORT = sys.argv[1], int(sys.argv[2])


def ask(line, field, more=""):
    with socket.create_connection((HOST, PORT), timeout=20) as sock:
        sock.sendall(f"{line} HTTP/1.1\r\nHost: {HOST}:{PORT}\r\n{field}: h2\r\n{more}\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data or data.count(b"\r\n\r\n") < 2 and not more:
            part = sock.recv(65536)
            if not part:
                break
            data += part
        head, _, seen = data.partition(b"\r\n\r\n")
        return head.split(b" ")[1].decode(), seen.decode()


for name in ["weft-app-protocol", "WEFT-App-Protocol", "weft_app_protocol"]:
    status, seen = ask("GET /head", name)
    print(status, seen.split("\r\n")[0], "app" in seen.split("\r\n", 1)[-1].lower())
    print(ask("GET /echo", name, "Connection: Upgrade\r\nUpgrade: weft-test\r\n")[0])
