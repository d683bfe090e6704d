"""A TCP proxy that misbehaves: between the library and a server that knows nothing of it.

    with Proxy("127.0.0.1", 5432) as proxy:
        connect("pgvector://postgres@127.0.0.1:{proxy.port}/db#t")
        proxy.fault("reset", after=20_000)     # once that many bytes have gone through in one connection

Bytes are never reordered and never changed; a fault only ends, delays or shortens what comes.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["reset", "truncate", "stall", "slow", "refuse"]
_CHUNK = 4096


@dataclass
class Fault:
    """What happens to the next ``times`` connections that carry ``after`` bytes in ``direction``.

    ``reset``: RST on both sides. ``truncate``: half of a piece goes through, then an orderly end.
    ``stall``: nothing more, for ``seconds``, then RST. ``slow``: each further piece takes ``seconds``.
    ``refuse``: RST right after the connection is made.
    """

    kind: Kind
    after: int = 0
    times: int = 1
    direction: Literal["up", "down", "both"] = "both"
    seconds: float = 0.02


@dataclass
class Proxy:
    """Listens on ``port`` of 127.0.0.1 and forwards to ``host:to``.

    Attributes:
        struck: how many connections a fault has met.
        connections: how many were made.
    """

    host: str
    to: int
    port: int = 0
    struck: int = 0
    connections: int = 0
    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for end in self._open:
            _reset(end)

    def fault(self, kind: Kind, **how: object) -> None:
        """Arrange a fault; several are met one after the other."""
        with self._lock:
            self._faults.append(Fault(kind, **how))  # type: ignore[arg-type]

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._take("refuse", "both", 0):
                _reset(near)
                continue
            try:
                far = socket.create_connection((self.host, self.to), timeout=5)
            except OSError:
                _reset(near)
                continue
            far.settimeout(None)
            self._open += [near, far]
            for a, b, direction in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._carry, args=(a, b, direction), daemon=True).start()

    def _take(self, kind: str, direction: str, carried: int) -> Fault | None:
        """The fault that is due for a connection, if any."""
        with self._lock:
            if not self._faults:
                return None
            fault = self._faults[0]
            wanted = (fault.kind == "refuse") == (kind == "refuse")
            if not wanted or fault.direction not in (direction, "both") or carried < fault.after:
                return None
            fault.times -= 1
            if fault.times <= 0:
                self._faults.pop(0)
            self.struck += 1
            return fault

    def _carry(self, a: socket.socket, b: socket.socket, direction: str) -> None:
        carried, slow = 0, 0.0
        with suppress(OSError):
            while piece := a.recv(_CHUNK):
                carried += len(piece)
                fault = None if slow else self._take("data", direction, carried)
                if fault is not None and fault.kind != "slow":
                    self._strike(fault, a, b, piece)
                    return
                slow = fault.seconds if fault is not None else slow
                time.sleep(slow)
                b.sendall(piece)
        with suppress(OSError):
            b.shutdown(socket.SHUT_WR)

    @staticmethod
    def _strike(fault: Fault, a: socket.socket, b: socket.socket, piece: bytes) -> None:
        if fault.kind == "stall":
            time.sleep(fault.seconds)
        if fault.kind == "truncate":
            b.sendall(piece[: len(piece) // 2])
            for end in (a, b):
                end.shutdown(socket.SHUT_RDWR)
                end.close()
            return
        _reset(a)
        _reset(b)


def _reset(end: socket.socket) -> None:
    """Close with RST, as a crashed peer or an impatient firewall does."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        end.close()
