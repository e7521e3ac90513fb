"""A TCP proxy on the loopback interface that can be slow, silent or gone: a bad network without root."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

CHUNK_BYTES = 1 << 16
CHUNKS_WAITING = 64
"""Chunks read and not passed on yet, per direction: what is slow pushes back on its sender."""
TICK_S = 0.02


class Proxy:
    """Passes every connection to its ``port`` on to ``upstream``; runs on a thread of its own.

    The attributes may be set at any time and hold for open connections too.
    """

    def __init__(self) -> None:
        self.upstream = 0
        """Port on the loopback interface."""
        self.latency_s = 0.0
        """Delay of each chunk, in each direction; throughput does not suffer from it."""
        self.silent = False
        """Nothing gets through, and nobody is told: connections stay open."""
        self.gone = False
        """Connections are refused."""
        self.deaf_to_produce = False
        """Nothing gets through on connections that have carried a Produce request; the others go on."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        """Those of the writers that lead to a client."""
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()

    def heal(self) -> None:
        self.latency_s, self.silent, self.gone, self.deaf_to_produce = 0.0, False, False, False

    def cut(self) -> None:
        """Reset every open connection."""
        self._ask(self._cut())

    def close(self) -> None:
        self._ask(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _ask(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.gone:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        self._clients.add(writer)
        requests = Requests()
        try:
            await asyncio.gather(
                self._pass_on(reader, back, requests), self._pass_on(there, writer, requests)
            )
        finally:
            self._writers -= {writer, back}
            self._clients.discard(writer)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: Requests
    ) -> None:
        """One direction: a reader that stamps chunks, a writer that lets each go when it is due."""
        to_broker = writer not in self._clients
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_WAITING)

        async def read() -> None:
            while chunk := await reader.read(CHUNK_BYTES):
                if to_broker:
                    requests.look(chunk)
                await waiting.put((self._loop.time() + self.latency_s, chunk))
            await waiting.put((0.0, b""))

        async def write() -> None:
            while True:
                due, chunk = await waiting.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                while self.silent or (self.deaf_to_produce and requests.produce):
                    await asyncio.sleep(TICK_S)
                if not chunk:
                    return
                writer.write(chunk)
                await writer.drain()

        reading = asyncio.ensure_future(read())
        writing = asyncio.ensure_future(write())
        try:
            # whichever ends first, the connection is over: the other would wait for it for ever
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
            writer.close()


class Requests:
    """Follows what a client sends on one connection: frames of a length and an API key, in chunks of any size."""

    def __init__(self) -> None:
        self.produce = False
        """There was a Produce request (key 0)."""
        self._left = 0
        self._head = b""

    def look(self, chunk: bytes) -> None:
        while chunk:
            if self._left:
                skipped = min(self._left, len(chunk))
                self._left -= skipped
                chunk = chunk[skipped:]
                continue
            wanted = 6 - len(self._head)
            self._head, chunk = self._head + chunk[:wanted], chunk[wanted:]
            if len(self._head) == 6:
                self._left = int.from_bytes(self._head[:4], "big") - 2
                self.produce = self.produce or self._head[4:] == b"\0\0"
                self._head = b""
