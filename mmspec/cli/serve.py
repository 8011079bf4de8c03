"""`mmspec serve`."""

import ipaddress
import os
import socket
from dataclasses import dataclass

from mmspec.cli.common import console, quiet_libraries, torch_device, torch_dtype
from mmspec.errors import MmspecError


@dataclass
class Serve:
    """Serve models over HTTP, in the shapes that OpenAI's clients speak.

    Example: mmspec serve --port 8000

    Images at /v1/images/generations, speech at /v1/audio/speech, chats with pictures at /v1/chat/completions; a
    description at /docs. An API key is read from MMSPEC_API_KEY.
    """

    models: tuple[str, ...] = ()
    """Bundled names, folders or hub ids; every bundled model if left out."""
    host: str = "127.0.0.1"
    """The default is reachable from this machine alone."""
    port: int = 8000
    """0 takes a free one, and says which."""
    rows: int = 16
    """How many generations of a model share a pass."""
    queue: int = 64
    """How many requests of a model may wait; one more gets 429."""
    timeout: float = 300.0
    """Most seconds for a request."""
    body: int = 20
    """Most megabytes of a request's body."""
    text: int = 4000
    """Most characters of a prompt, a text to speak, or a message."""
    allow_urls: bool = False
    """Fetch pictures from http(s) addresses; private ones are refused even so."""
    dtype: str = "bf16"
    """bf16, fp32, fp64 or fp16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    quiet: bool = False
    """No line for each request."""

    def run(self) -> int:
        for name, low in (("rows", 1), ("queue", 0), ("timeout", 0.1), ("body", 1), ("text", 1)):
            if getattr(self, name) < low:
                raise MmspecError(f"--{name} {getattr(self, name)} is out of range: give at least {low}")
        try:
            import uvicorn

            from mmspec.serve.app import application
            from mmspec.serve.hosting import load_pipelines
            from mmspec.serve.serving import Limits, Serving
        except ModuleNotFoundError as error:
            raise MmspecError(f"the server needs {error.name}: pip install 'mmspec[serve]'") from None
        key = os.environ.get("MMSPEC_API_KEY") or None
        if self.host not in ("127.0.0.1", "::1", "localhost") and key is None:
            console.print(
                f"mmspec: warning: anyone who can reach {self.host} may use this server: set MMSPEC_API_KEY",
                soft_wrap=True,
            )
        quiet_libraries()
        listener = listening(self.host, self.port)
        pipes = load_pipelines(self.models, torch_device(self.device), torch_dtype(self.dtype))
        limits = Limits(self.rows, self.queue, self.timeout, self.body * 1_000_000, self.text)
        host, port = listener.getsockname()[:2]
        local_names = (
            frozenset({"localhost", "127.0.0.1", "[::1]"}) if ipaddress.ip_address(host).is_loopback else frozenset()
        )
        app = application(Serving(pipes, limits, key, self.allow_urls, local_names))
        console.print(
            f"mmspec: serving {', '.join(pipes)} at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C "
            "ends it)",
            soft_wrap=True,
        )
        options = dict(log_level="warning" if self.quiet else "info", timeout_graceful_shutdown=30, server_header=False)
        options["limit_concurrency"] = 64 + 2 * len(pipes) * (self.rows + self.queue)
        uvicorn.Server(uvicorn.Config(app, **options)).run(sockets=[listener])  # type: ignore[arg-type]
        return 0


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before any model is loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MmspecError(f"cannot listen at {host}:{port} ({reason}): choose another --host or --port") from None
