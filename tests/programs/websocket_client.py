"""The client for websocket_server.py. Usage: websocket_client.py HOST PORT"""

import asyncio
import os
import sys

import websockets

from checks import equal, run

URL = f"ws://{sys.argv[1]}:{sys.argv[2]}/chat"


def asynchronous(check):
    def call():
        asyncio.run(asyncio.wait_for(check(), 30))
    call.__name__ = check.__name__
    return call


@asynchronous
async def texts_and_bytes():
    async with websockets.connect(URL) as connection:
        for message in ["hello", "", "\u00e9\u4e16", b"", b"\x00\xff", os.urandom(70_000)]:
            await connection.send(message)
            equal(await connection.recv(), message)


@asynchronous
async def a_large_message():
    message = os.urandom(8 << 20)
    async with websockets.connect(URL, max_size=16 << 20) as connection:
        await connection.send(message)
        equal(await connection.recv() == message, True)


@asynchronous
async def ping_and_pong():
    async with websockets.connect(URL) as connection:
        await asyncio.wait_for(await connection.ping(), 10)


@asynchronous
async def an_idle_while():
    async with websockets.connect(URL) as connection:
        await asyncio.sleep(3)
        await connection.send("still here")
        equal(await connection.recv(), "still here")


@asynchronous
async def the_server_closes():
    async with websockets.connect(URL) as connection:
        await connection.send("close please")
        try:
            await connection.recv()
            raise AssertionError("no close")
        except websockets.ConnectionClosed as closed:
            equal((closed.rcvd.code, closed.rcvd.reason), (4001, "as asked"))


@asynchronous
async def many_at_once():
    async def one(number):
        async with websockets.connect(URL) as connection:
            for i in range(20):
                await connection.send(f"{number}.{i}")
                equal(await connection.recv(), f"{number}.{i}")
    await asyncio.gather(*(one(number) for number in range(50)))


run([(c.__name__, c) for c in [texts_and_bytes, a_large_message, ping_and_pong, an_idle_while,
                               the_server_closes, many_at_once]])
