"""A store as quick as a store can be: any key is one of 64 frames of 150 KB, from memory. ``python shelf.py PORT_FILE``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

FRAMES, FRAME_BYTES = 64, 224 * 224 * 3


class Shelf(asyncio.Protocol):
    """One connection: each GET is answered from memory, whatever its signature."""

    answers: list[bytes]

    def __init__(self) -> None:
        self._asked = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=1 << 20)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._asked = (self._asked + data).split(b"\r\n\r\n")
        for request in requests:
            path = request.split(b" ", 2)[1].split(b"?", 1)[0]
            self._transport.write(self.answers[int(path.rsplit(b"/", 1)[1]) % FRAMES])


async def serve(port_file: Path) -> None:
    body = [bytes([number]) * FRAME_BYTES for number in range(FRAMES)]
    head = b'HTTP/1.1 200 OK\r\nETag: "x"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nContent-Length: %d\r\n\r\n'
    Shelf.answers = [head % FRAME_BYTES + frame for frame in body]
    server = await asyncio.get_running_loop().create_server(Shelf, "127.0.0.1", 0)
    port_file.write_text(str(server.sockets[0].getsockname()[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
