"""A name server of the outside on 127.0.0.1:53: every A question is answered 192.0.2.7; names that
begin with `big` need TCP, `none` does not exist, everything else has no such record."""
import socket
import struct
import threading


def answer(query, tcp):
    ident, _flags, count = struct.unpack(">HHH", query[:6])
    end = 12
    while query[end]:
        end += 1 + query[end]
    question = query[12:end + 5]
    kind = struct.unpack(">H", query[end + 1:end + 3])[0]
    first = query[13:13 + query[12]]
    code = 3 if first == b"none" else 0
    big = first.startswith(b"big")
    records = b""
    if kind == 1 and code == 0:
        for number in range(60 if big else 1):
            records += struct.pack(">HHHIH4s", 0xC00C, 1, 1, 60, 4, bytes([192, 0, 2, 7 + number]))
    truncated = big and not tcp
    if truncated:
        records = b""
    flags = 0x8180 | (0x0200 if truncated else 0) | code
    return struct.pack(">HHHHHH", ident, flags, count, len(records) // 16, 0, 0) + question + records


def over_tcp():
    listener = socket.create_server(("127.0.0.1", 53))
    while True:
        conn, _ = listener.accept()
        with conn:
            size = struct.unpack(">H", conn.recv(2, socket.MSG_WAITALL))[0]
            reply = answer(conn.recv(size, socket.MSG_WAITALL), True)
            conn.sendall(struct.pack(">H", len(reply)) + reply)


udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 53))
threading.Thread(target=over_tcp, daemon=True).start()
print("serving", flush=True)
while True:
    query, peer = udp.recvfrom(4096)
    udp.sendto(answer(query, False), peer)
