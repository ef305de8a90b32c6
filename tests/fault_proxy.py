"""A proxy that stands before an S3 server and breaks what passes, by order or by a seeded schedule."""

import random
import re
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate

CODES = {
    "500": (500, "InternalError"),
    "slowdown": (503, "SlowDown"),
    "conflict": (409, "ConditionalRequestConflict"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
}
PASSING = ("500", "slowdown", "reset-before", "reset-after", "cut", "trickle")


@dataclass
class Order:
    """Break the next `times` requests that match with `kind`."""

    kind: str
    times: int
    method: str
    containing: str


@dataclass
class FaultProxy:
    """Forwards to a port of this machine, one upstream connection a request.

    Kinds: `500`, `slowdown`, `conflict`, `expired`, `denied` answer so without forwarding; `reset-before` and
    `reset-after` break the connection before and after the server did its work; `cut` sends half an answer's body;
    `trickle` sends it in drops; `hang` answers nothing; `stale` answers a listing with what it was the time before.
    """

    upstream: int
    seed: int = 0
    rate: float = 0.0
    kinds: tuple[str, ...] = PASSING
    clock: float = 0.0  # seconds that the server's Date is moved by
    faults: Counter = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._orders: list[Order] = []
        self._answers: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):  # a client that went away is no business of the proxy
                    proxy._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def inject(self, kind: str, times: int = 1, *, method: str = "", containing: str = "") -> None:
        """Break the next requests of a method whose path and query contain a text."""
        with self._lock:
            self._orders.append(Order(kind, times, method, containing))

    def _choose(self, method: str, target: str) -> str:
        with self._lock:
            self.requests.append(f"{method} {target}")
            kind = self._ordered(method, target)
            if not kind and self._random.random() < self.rate:
                kind = self._random.choice(self.kinds)
            if kind:
                self.faults[kind] += 1
            return kind

    def _ordered(self, method: str, target: str) -> str:
        for order in self._orders:
            if order.times and order.method in ("", method) and order.containing in target:
                order.times -= 1
                return order.kind
        return ""

    def _serve(self, client: socket.socket) -> None:
        head, body = _receive(client)
        if not head:
            return
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        kind = self._choose(method, target)
        if kind in CODES:
            client.sendall(_error(*CODES[kind], method))
        elif kind == "reset-before":
            _reset(client)
        elif kind == "hang":
            self._over.wait()
        else:
            answer = self._forward(head, body, target, stale=kind == "stale")
            _answer(client, answer, kind)

    def _forward(self, head: bytes, body: bytes, target: str, *, stale: bool) -> bytes:
        lines = [
            line for line in head.split(b"\r\n") if not line.lower().startswith((b"expect:", b"connection:"))
        ]
        with socket.create_connection(("127.0.0.1", self.upstream)) as server:
            server.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            answer = b"".join(iter(lambda: server.recv(1 << 16), b""))
        if self.clock:
            moved = formatdate(time.time() + self.clock, usegmt=True).encode()
            answer = re.sub(rb"(?i)(\r\ndate: )[^\r]+", rb"\g<1>" + moved, answer, count=1)
        if "list-type=2" not in target:
            return answer
        with self._lock:
            before = self._answers.get(target, answer)
            self._answers[target] = answer
        return before if stale else answer


def _receive(client: socket.socket) -> tuple[bytes, bytes]:
    """One request: its head without the blank line, and its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(1 << 16)
        if not piece:
            return b"", b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
    if b"expect" in headers:
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    pieces, missing = [body], int(headers.get(b"content-length", 0)) - len(body)
    while missing > 0:
        piece = client.recv(1 << 20)
        if not piece:
            return b"", b""
        pieces.append(piece)
        missing -= len(piece)
    return head, b"".join(pieces)


def _answer(client: socket.socket, answer: bytes, kind: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    if kind == "reset-after":
        _reset(client)
    elif kind == "cut":
        client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])
        if not body:  # nothing to cut but the head itself
            return
    elif kind == "trickle":
        step = max(1, len(answer) // 8)
        for start in range(0, len(answer), step):
            client.sendall(answer[start : start + step])
            time.sleep(0.003)
    else:
        client.sendall(answer)


def _error(status: int, code: str, method: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>as ordered</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + (b"" if method == "HEAD" else body)


def _reset(client: socket.socket) -> None:
    """Close with RST: lingering for no time throws the connection away."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
