"""A WebSocket echo (PyPI websockets). Usage: websocket_server.py [BIND] PORT"""

import asyncio
import sys

import websockets


async def echo(connection):
    async for message in connection:
        if message == "close please":
            await connection.close(4001, "as asked")
            return
        await connection.send(message)


async def main():
    bind, port = (sys.argv[1:] if len(sys.argv) > 2 else (None, sys.argv[1]))
    async with websockets.serve(echo, bind, int(port), max_size=16 << 20):
        print("serving", flush=True)
        await asyncio.Future()


asyncio.run(main())
