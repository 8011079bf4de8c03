"""The page that is there while models load: it says what is loading, and gives way to the demo."""

import html
import socket
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Self
from urllib.parse import quote

from mmspec.errors import MmspecError

# Where the search for a free port begins, and how many are tried.
FIRST_PORT, PORTS = 7860, 100

# A header of this page alone: an answer without it comes from the demo.
HEADER = "X-Mmspec-Loading"

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>mmspec is loading</title>
<noscript><meta http-equiv="refresh" content="2"></noscript>
<style>body {{ font: 1.1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto; padding: 0 1rem }}</style>
</head>
<body>
<h1>mmspec</h1>
<p role="status">{status}</p>
<p>The demo opens here when its models are loaded.</p>
<script>
setInterval(async () => {{
  try {{
    const answer = await fetch(location.href, {{cache: "no-store"}});
    const status = answer.headers.get("{header}");
    if (status === null) location.reload();
    else document.querySelector("[role=status]").textContent = decodeURIComponent(status);
  }} catch {{}}
}}, 1000);
</script>
</body>
</html>
"""


class WaitingPage:
    """A page at the demo's address, from the beginning until the block that it is used for ends.

    Without a port it takes the first free one from 7860 on. Raises MmspecError if it cannot listen.
    """

    def __init__(self, host: str, port: int | None = None):
        self.status = "starting …"
        self._connections: set[socket.socket] = set()
        self._server = self._listen(host, port)
        self.host, self.port = host, int(self._server.server_address[1])
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def _listen(self, host: str, port: int | None) -> ThreadingHTTPServer:
        """A server at the first of the ports that is free."""
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = PAGE.format(status=html.escape(page.status), header=HEADER).encode()
                self.send_response(200 if self.path == "/" else 503)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.send_header(HEADER, quote(page.status))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Nothing is logged."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
                page._connections.add(request)
                super().process_request(request, client_address)

            def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
                page._connections.discard(request)
                super().shutdown_request(request)

        error: Exception = OSError("no port is free")
        for candidate in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]:
            try:
                Server.address_family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
                return Server((host, candidate), Handler)
            except (OSError, OverflowError) as failed:
                error = failed
        reason = getattr(error, "strerror", None) or error
        where = f"{host}:{port}" if port is not None else f"{host}, ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
        raise MmspecError(f"cannot listen at {where} ({reason}): choose another --host or --port")

    @property
    def address(self) -> str:
        """What to open in a browser on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the address for the demo; closing twice does nothing.

        Connections that a browser opened ahead of its requests end, too: what it asked over them next, a script of the
        demo, would be answered by this page.
        """
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
