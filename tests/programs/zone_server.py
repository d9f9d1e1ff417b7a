"""A name server on 127.0.0.1:53 for what a file says at the moment.

zone_server.py FILE: each line of the file is a name, a TTL and an IPv4 address; a name that is in no
line does not exist. Prints every question with the number of its answers, -1 for NXDOMAIN.
"""
import socket
import struct
import sys


def zone():
    records = {}
    with open(sys.argv[1], encoding="ascii") as lines:
        for line in lines:
            name, ttl, address = line.split()
            records.setdefault(name, []).append((int(ttl), socket.inet_aton(address)))
    return records


def answer(query):
    ident, _flags, count = struct.unpack(">HHH", query[:6])
    end, labels = 12, []
    while query[end]:
        labels.append(query[end + 1:end + 1 + query[end]].decode())
        end += 1 + query[end]
    name = ".".join(labels).lower()
    question = query[12:end + 5]
    kind = struct.unpack(">H", query[end + 1:end + 3])[0]
    found = zone().get(name)
    records = found if found and kind == 1 else []
    code = 0 if found else 3
    print(name, kind, len(records) if found else -1, flush=True)
    body = b"".join(struct.pack(">HHHIH4s", 0xC00C, 1, 1, ttl, 4, a) for ttl, a in records)
    head = struct.pack(">HHHHHH", ident, 0x8180 | code, count, len(records), 0, 0)
    return head + question + body


udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 53))
print("serving", flush=True)
while True:
    query, peer = udp.recvfrom(4096)
    udp.sendto(answer(query), peer)
