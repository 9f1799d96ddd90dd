"""A server on loopback in front of an S3 server, in which the k-th request fails.

Faults are made where a network makes them, so that the retries of every layer take part: those of the S3 client, of
s3fs and of raygen.
"""

import http.client
import http.server
import threading
from types import TracebackType
from typing import Final
from urllib.parse import urlsplit

#: Fault -> number of requests in a row that fail: a client repeats one, `burst` is more than botocore repeats, and
#: after the begin of an `outage` no request of the command succeeds.
SPANS: Final = {"500": 1, "503": 1, "409": 1, "reset": 1, "lost": 1, "burst": 7, "outage": 1 << 30}
#: Requests whose lost answer is another fault than a lost request.
CHANGES: Final = ("PUT", "POST", "DELETE")
CODES: Final = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "burst": (503, "SlowDown", "Please reduce your request rate."),
    "409": (409, "ConditionalRequestConflict", "A conflicting conditional operation is in progress for this resource."),
}
#: Headers that belong to a connection and not to a request.
HOP: Final = ("connection", "transfer-encoding", "expect", "keep-alive")


class Proxy:
    """Counts requests; from request `at` on (from 1 on) as many fail as `SPANS` says.

    `reset` closes the connection before the request is forwarded, and `lost` after the server answered, to a request
    that changes something. `409` is what AWS answers to a create-only write while another one of the same name goes on.
    """

    def __init__(self, upstream: str) -> None:
        """`upstream`: URL of the server."""
        self.upstream = urlsplit(upstream).netloc
        self.lock = threading.Lock()
        self.arm("", 0)
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Address of the proxy."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def arm(self, fault: str, at: int) -> None:
        """Count from zero; the requests from `at` on meet `fault`."""
        with self.lock:
            self.count, self.fault, self.at = 0, fault, at

    def fault_of(self, method: str, *, conditional: bool) -> str:
        """Count a request that this fault may meet: the fault where it does, or an empty string."""
        with self.lock:
            if (self.fault == "lost" and method not in CHANGES) or (self.fault == "409" and not conditional):
                return ""
            self.count += 1
            return self.fault if self.at and self.at <= self.count < self.at + SPANS[self.fault] else ""

    def __enter__(self) -> "Proxy":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.owner.fault_of(self.command, conditional="If-None-Match" in self.headers)
        if fault in ("reset", "outage"):
            self.close_connection = True
            return
        if fault in CODES:
            status, code, text = CODES[fault]
            data = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
            self._answer(status, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else data)
            return
        server = http.client.HTTPConnection(self.owner.upstream, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            data = answer.read()
        finally:
            server.close()
        if fault == "lost":
            self.close_connection = True
            return
        self._answer(answer.status, answer.getheaders(), data)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in (*HOP, "content-length"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", "0")
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""
