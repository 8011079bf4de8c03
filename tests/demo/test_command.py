"""`mmspec demo` in a terminal: cheap errors, an address at once, a page that waits, a login, an end."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from demo.pages import shown

from mmspec.cli.demo import Demo
from mmspec.demo.waiting import HEADER, WaitingPage
from mmspec.errors import MmspecError

pytest.importorskip("gradio")


def fetch(address: str, **headers: str):
    from urllib.request import Request, urlopen

    return urlopen(Request(address, headers=headers), timeout=30)


def test_cheap_mistakes_are_told_before_anything_is_loaded() -> None:
    """Neither torch nor Gradio is imported to refuse a tab, a login, a model or a port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = [
            ("['--tabs', 'chess']", "unknown tab 'chess'"),
            ("['--auth', 'nobody']", "--auth must be user:password"),
            ("['--models', 'nothere']", "unknown model 'nothere'"),
            (f"['--port', '{taken.getsockname()[1]}']", "cannot listen at 127.0.0.1"),
        ]
        for arguments, message in cases:
            code = (
                "import sys\nfrom mmspec.cli import main\n"
                f"try: main(['demo', *{arguments}])\n"
                "except SystemExit as end: print(end.code, {'torch', 'gradio'} & sys.modules.keys())"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert message in done.stderr, done.stderr
            assert done.stdout.strip() == "2 set()", arguments


def test_login_from_the_environment(monkeypatch) -> None:
    assert Demo().login is None
    monkeypatch.setenv("MMSPEC_DEMO_AUTH", "ada:se:cret")
    assert Demo().login == ("ada", "se:cret")
    assert Demo(auth="bob:x").login == ("bob", "x")
    with pytest.raises(MmspecError, match="user:password, as in"):
        Demo(auth=":x").login  # noqa: B018


def test_connections_end_with_the_waiting_page() -> None:
    """What a browser asks over a connection of before is not answered by a page that is gone."""
    with WaitingPage("127.0.0.1") as page:
        connection = socket.create_connection((page.host, page.port), timeout=30)
        with fetch(f"{page.address}/"):
            pass
    assert connection.recv(1) == b""
    connection.close()


def test_the_waiting_page_says_what_is_loading() -> None:
    with WaitingPage("127.0.0.1") as page:
        page.status = "loading <tiny> …"
        with fetch(f"{page.address}/") as answer:
            assert answer.headers[HEADER] == "loading%20%3Ctiny%3E%20%E2%80%A6"
            assert "loading &lt;tiny&gt; …" in answer.read().decode()
        with pytest.raises(OSError, match="503"):
            fetch(f"{page.address}/config")
        with pytest.raises(MmspecError, match=f"cannot listen at 127.0.0.1:{page.port} .*choose another --host or --p"):
            WaitingPage("127.0.0.1", page.port)
    socket.create_server(("127.0.0.1", page.port)).close()  # it is free again


@pytest.mark.slow
def test_from_the_first_line_to_the_end(folders, tmp_path: Path) -> None:
    """The address comes within seconds and answers at once; then the demo wants its login; SIGTERM ends it."""
    log, began = tmp_path / "log", time.monotonic()
    command = ("-m", "mmspec", "demo", "--models", folders[0], "--root-path", "/mmspec")
    with shown(log, *command, MMSPEC_DEMO_AUTH="ada:secret") as address:
        first = time.monotonic() - began
        with fetch(address) as answer:
            assert answer.headers[HEADER]
        until = time.monotonic() + 180
        while "ready after" not in log.read_text() and time.monotonic() < until:
            time.sleep(0.2)
        ready = time.monotonic() - began
        assert first < ready / 2
        with fetch(address) as answer:
            assert HEADER not in answer.headers and "/mmspec" in answer.read().decode()
        with pytest.raises(OSError, match="401"):
            fetch(f"{address}/config")
    lines = log.read_text()
    assert "loading libraries" in lines and "model 1 of 1" in lines and "share=True" not in lines
    assert lines.rstrip().endswith("the demo has ended"), lines
