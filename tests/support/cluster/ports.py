"""Hand out TCP ports that no other test process will take, for daemons that need a fixed port."""

from __future__ import annotations

import os
import random
import socket


class Ports:
    """Reserve free ports of the loopback address until `release`.

    A port of 0 would be freed again before a daemon could bind it. So each port (below the
    ephemeral range) is held by an abstract Unix socket of its name, which the kernel frees
    when the process ends, whatever ends it, and which works across users.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []
        self._random = random.Random(os.urandom(8))

    def take(self) -> int:
        """A port that is free now and that no other `Ports` will hand out."""
        for _ in range(2000):
            port = self._random.randrange(15000, 32000)
            name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                name.bind(f"\0websight-orchestrate-test-port-{port}")
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            except OSError:
                name.close()
                continue
            self._held.append(name)
            return port
        raise RuntimeError("no free TCP port between 15000 and 32000 on the loopback address")

    def release(self) -> None:
        """Give all ports back."""
        while self._held:
            self._held.pop().close()

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
