"""One JSON object per line over TCP, between an engine and the primary's router."""

import json
import select
import socket
import threading
import time


class Link:
    """A connection.

    `send` may be called from several threads; a dead peer is not an error, as with ZMQ.
    """

    def __init__(self, sock):
        self.sock = sock
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lock = threading.Lock()
        self._buffer = b""
        self.open = True

    def send(self, message):
        try:
            with self._lock:
                self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def receive(self, timeout=None):
        """Messages that have come, waiting up to `timeout` seconds for the first; [] and `open`
        False at the end."""
        if not select.select([self.sock], [], [], timeout)[0]:
            return []
        try:
            data = self.sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.open = False
            return []
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]


def connect(address, limit_s):
    """Connect and send nothing; tries again until `limit_s` seconds are over, then returns None."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return Link(socket.create_connection(address, timeout=5))
        except OSError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def listen(address, backlog=64):
    """Bind with SO_REUSEADDR, and listen unless `backlog` is 0. Raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        if backlog:
            sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock
