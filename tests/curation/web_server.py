"""A web server on this machine that does what it should not."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `files`, by path.

    Attributes:
        files: path -> content.
        requests: the Range of every request so far, "" where it asked for all.
        breaks: for the next requests: bytes of the body after which the line breaks.
        answers: for the next requests, once `breaks` is empty: a status to answer, and nothing more.
        ranges: whether it answers to Range. tag: ETag of every file; none where empty.
        length: whether it says how long a file is. kind: Content-Type.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.breaks: list[int] = []
        self.answers: list[int] = []
        self.ranges = True
        self.tag = '"one"'
        self.length = True
        self.kind = "application/octet-stream"
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._http.server_port}{path}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range", "")
        self.requests.append(asked)
        content = self.files.get(request.path)
        if not self.breaks and self.answers:
            request.send_error(self.answers.pop(0))
            return
        if content is None:
            request.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if not self.ranges or request.headers.get("If-Range", self.tag) != self.tag:
            start = 0
        if start >= len(content) > 0:
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.length:
            request.send_header("Content-Length", str(len(content) - start))
        if self.tag:
            request.send_header("ETag", self.tag)
        request.send_header("Content-Type", self.kind)
        request.end_headers()
        count = self.breaks.pop(0) if self.breaks else len(content)
        request.wfile.write(content[start : start + count])
        request.close_connection = True
