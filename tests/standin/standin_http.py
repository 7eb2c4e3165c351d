"""A small HTTP/1.1 server: a thread per connection, keep-alive, whole bodies or chunks."""

import json
import socket
import threading

PHRASES = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
           500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


class Request:
    """One request. `body` is parsed JSON, or {}."""

    def __init__(self, method, path, headers, body):
        self.method = method
        self.path = path.partition("?")[0]
        self.headers = headers
        try:
            self.body = json.loads(body) if body else {}
        except ValueError:
            self.body = None


class Response:
    """`body`: text, a JSON-able value, or an iterator of text that is sent in chunks."""

    def __init__(self, status, body="", kind="application/json"):
        self.status = status
        self.body = body
        self.kind = kind


def serve(listener, answer, log):
    """Accept for ever. `answer(request) -> Response`."""
    while True:
        try:
            sock, peer = listener.accept()
        except OSError:
            return
        threading.Thread(target=_talk, args=(sock, peer, answer, log), daemon=True).start()


def _talk(sock, peer, answer, log):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock, sock.makefile("rb") as reader:
        try:
            while True:
                request = _read(reader)
                if request is None:
                    return
                response = answer(request)
                line = f'{peer[0]}:{peer[1]} - "{request.method} {request.path} HTTP/1.1" {response.status}'
                log.raw(f"INFO:     {line} {PHRASES[response.status]}")
                _write(sock, response)
                if request.headers.get("connection", "").lower() == "close":
                    return
        except (OSError, ValueError):
            return  # the peer went away, or does not speak HTTP


def _read(reader):
    first = reader.readline(65536).split()
    if len(first) != 3:
        return None
    headers = {}
    while (line := reader.readline(65536)) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    body = reader.read(int(headers.get("content-length") or 0))
    return Request(first[0].decode(), first[1].decode(), headers, body)


def _write(sock, response):
    head = f"HTTP/1.1 {response.status} {PHRASES[response.status]}\r\nserver: uvicorn\r\ncontent-type: {response.kind}\r\n"
    if hasattr(response.body, "__next__"):
        sock.sendall((head + "transfer-encoding: chunked\r\n\r\n").encode())
        for part in response.body:
            data = part.encode()
            sock.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        sock.sendall(b"0\r\n\r\n")
        return
    text = response.body if isinstance(response.body, str) else json.dumps(response.body)
    data = text.encode()
    sock.sendall((head + f"content-length: {len(data)}\r\n\r\n").encode() + data)
