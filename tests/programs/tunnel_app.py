"""An application in HTTP/1.1 with tunnels (`CONNECT` and any `Upgrade`). Usage: tunnel_app.py PORT

A tunnel discards what it is sent until its client ends; one to the path or host `echo` sends it back. `CONNECT` to
`switch` is answered 101, as no server should. `GET /seen` says how many connections and tunnels it has seen, and
how many were open at a time; `GET /head` is answered with the request's head; any other request with a line."""

import asyncio
import json
import sys

seen = dict(connections=0, open=0, most_open=0, tunnels=0, requests=0)


async def answer(reader, writer, head):
    """Answers a request; whether the connection goes on."""
    lines = head.decode("latin-1").split("\r\n")
    method, target, _version = lines[0].split(" ", 2)
    fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    if method == "CONNECT" or "upgrade" in fields:
        seen["tunnels"] += 1
        protocol = fields.get("upgrade", "none")
        switch = method != "CONNECT" or target.startswith("switch")
        writer.write(f"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode()
                     if switch else b"HTTP/1.1 200 Connected\r\n\r\n")
        await tunnel(reader, writer, "echo" in target)
        return False
    seen["requests"] += 1
    body = {"/seen": json.dumps(seen).encode(), "/head": head}.get(target, b"plain\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()
    return True


async def tunnel(reader, writer, echo):
    while data := await reader.read(65536):
        if echo:
            writer.write(data)
            await writer.drain()


async def serve(reader, writer):
    seen["connections"] += 1
    seen["open"] += 1
    seen["most_open"] = max(seen["most_open"], seen["open"])
    try:
        while await answer(reader, writer, await reader.readuntil(b"\r\n\r\n")):
            pass
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        seen["open"] -= 1
        writer.close()


async def main():
    server = await asyncio.start_server(serve, None, int(sys.argv[1]), backlog=1024)
    async with server:
        await server.serve_forever()

asyncio.run(main())
