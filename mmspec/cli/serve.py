"""`mmspec serve`."""

import copy
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import Any

from mmspec.cli.common import (
    Count,
    Device,
    Dtype,
    Fraction,
    Host,
    Root,
    Strings,
    Switch,
    Whole,
    console,
    quiet_libraries,
    torch_device,
    torch_dtype,
)
from mmspec.errors import MmspecError


@dataclass
class Serve:
    """Serve models over HTTP, in the shapes that OpenAI's clients speak.

    Example: mmspec serve --port 8000

    Behind a proxy: mmspec serve --allowed-hosts api.example.org --root-path /mmspec --cors-origins https://example.org

    Images at /v1/images/generations, speech at /v1/audio/speech, chats with pictures at /v1/chat/completions; a
    description at /docs. An API key is read from MMSPEC_API_KEY.
    """

    models: Strings = ()
    """Bundled names, folders or hub ids; every bundled model if left out."""
    host: Host = "127.0.0.1"
    """The default is reachable from this machine alone."""
    port: Count = 8000
    """0 takes a free one, and says which."""
    rows: Count = 16
    """How many generations of a model share a pass."""
    queue: Count = 64
    """How many requests of a model may wait; one more gets 429."""
    timeout: Fraction = 300.0
    """Most seconds for a request."""
    body: Count = 20
    """Most megabytes of a request's body."""
    text: Whole = None
    """Most characters of a prompt, a text to speak, or a chat; if left out 4096 of speech and 32000 of the others."""
    alias: Strings = ()
    """Further names of models, as in dall-e-3=emoji-64 tts-1=wren-86."""
    cors_origins: Strings = ()
    """Origins whose pages may call the server from a browser, as in https://example.org; * is any."""
    allowed_hosts: Strings = ()
    """Names to answer to beside the local ones, such as *.example.org or *; if left out none, or any off loopback."""
    root_path: Root = ""
    """The path below which a proxy serves this, as in /mmspec."""
    allow_urls: Switch = False
    """Fetch pictures from http(s) addresses; private ones are refused even so."""
    dtype: Dtype = "bf16"
    """bf16, fp32, fp64 or fp16."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto is a GPU if there is one."""
    deterministic: Switch = False
    """In bf16 on a CPU: plain decoding's tokens bit for bit, whoever else is there; fewer tokens come in a round."""
    compile: Switch = False
    """Compile passes by torch.compile: minutes the first time, some seconds in every later process; for long work."""
    quiet: Switch = False
    """No line for each request."""

    def run(self) -> int:
        for name, low in (("rows", 1), ("queue", 0), ("timeout", 0.1), ("body", 1), ("text", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise MmspecError(f"--{name} {value} is out of range: give at least {low}")
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path):
            raise MmspecError(f"--root-path {self.root_path}: give a path such as /mmspec, without a slash at its end")
        aliases: dict[str, str] = {}
        for alias in self.alias:
            name, model = read_alias(alias)
            if aliases.setdefault(name, model) != model:
                raise MmspecError(f"--alias {alias}: {name} stands for {aliases[name]} already: give another alias")
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
        placement = (torch_device(self.device), torch_dtype(self.dtype))
        pipes = load_pipelines(self.models, *placement, self.deterministic, self.compile)
        limits = Limits(self.rows, self.queue, self.timeout, self.body * 1_000_000, self.text)
        host, port = listener.getsockname()[:2]
        local_names = (
            frozenset({"localhost", "127.0.0.1", "[::1]"}) if ipaddress.ip_address(host).is_loopback else frozenset()
        )
        hosts = local_names | set(self.allowed_hosts)
        serving = Serving(pipes, limits, key, self.allow_urls, hosts, aliases)
        app = application(serving, self.cors_origins, self.root_path)
        console.print(
            f"mmspec: serving {', '.join(pipes)} at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C "
            "ends it)",
            soft_wrap=True,
        )
        level = "warning" if self.quiet else "info"
        options: dict[str, Any] = dict(log_config=log_config(level), log_level=level, access_log=False)
        options |= dict(timeout_graceful_shutdown=30, server_header=False)
        options["limit_concurrency"] = 64 + 2 * len(pipes) * (self.rows + self.queue)
        uvicorn.Server(uvicorn.Config(app, **options)).run(sockets=[listener])
        return 0


def read_alias(alias: str) -> tuple[str, str]:
    """A further name of a model, and the model's."""
    name, equals, model = alias.partition("=")
    if not (name and equals and model):
        raise MmspecError(f"--alias {alias}: give NAME=MODEL, as in dall-e-3=emoji-64")
    return name, model


def log_config(level: str) -> dict:
    """uvicorn's configuration of logging, with the time in each line, and the server's own line for each request."""
    from uvicorn.config import LOGGING_CONFIG

    config = copy.deepcopy(LOGGING_CONFIG)
    config["formatters"]["default"] |= {"fmt": "%(asctime)s %(levelprefix)s %(message)s"}
    config["loggers"]["mmspec.serve"] = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    return config


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before any model is loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MmspecError(f"cannot listen at {host}:{port} ({reason}): choose another --host or --port") from None
