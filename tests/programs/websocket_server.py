"""A WebSocket echo (PyPI websockets). `/forbidden` is refused, `/ignored` answered as an ordinary request.
Usage: websocket_server.py [BIND] PORT"""

import asyncio
import http
import sys

import websockets


async def echo(connection):
    async for message in connection:
        if message == "close please":
            await connection.close(4001, "as asked")
            return
        await connection.send(message)


def ordinary(connection, request):
    if request.path == "/forbidden":
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not here")
    if request.path == "/ignored":
        return connection.respond(http.HTTPStatus.OK, "a page")
    return None


async def main():
    bind, port = (sys.argv[1:] if len(sys.argv) > 2 else (None, sys.argv[1]))
    async with websockets.serve(echo, bind, int(port), max_size=16 << 20,
                                process_request=ordinary):
        print("serving", flush=True)
        await asyncio.Future()


asyncio.run(main())
