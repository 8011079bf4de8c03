"""Pictures from elsewhere: addresses that are not public, and what is fetched."""

import time

import httpx
import pytest

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64,AAAA", "a picture cannot be read"),
        ("data:image/png;base64,***", "data URL is broken"),
        ("data:image/png,AAAA", "data URL is broken"),
        ("http://127.0.0.1/x.png", "this server fetches no addresses"),
        ("file:///etc/passwd", "this server fetches no addresses"),
        ("/etc/passwd", "this server fetches no addresses"),
    ],
)
def test_wrong_pictures(address: str, url: str, message: str) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_addresses_that_are_not_public() -> None:
    from mmspec.errors import MmspecError
    from mmspec.serve.remote import fetch, public

    for address in (
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "::1",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
    ):
        assert not public(address)
    assert public("93.184.216.34") and public("2606:2800:220:1::1")
    for url in ("http://127.0.0.1:1/x", "http://localhost:1/x", "https://[::1]:1/x", "http://2130706433/x"):
        with pytest.raises(MmspecError, match="not public"):
            fetch(url, 100, 1.0)
    for url in ("file:///etc/passwd", "ftp://example.com/x", "http://", "nonsense"):
        with pytest.raises(MmspecError, match="not an http"):
            fetch(url, 100, 1.0)


def test_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allowed comes; a redirect to a private or foreign place, a large answer and a slow one are refused."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    from mmspec.errors import MmspecError
    from mmspec.serve import remote

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            places = {"/away": "http://10.0.0.1/x", "/ftp": "ftp://10.0.0.1/x", "/round": "/round", "/on": "/x"}
            self.send_response(302 if self.path in places else 200)
            if self.path in places:
                self.send_header("Location", places[self.path])
            self.end_headers()
            for _ in range(5 if self.path == "/slow" else 1):
                self.wfile.write(b"x" * (5000 if self.path == "/large" else 10))
                time.sleep(0.3 if self.path == "/slow" else 0)

        def log_message(self, *arguments) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        Thread(target=found.serve_forever, daemon=True).start()
        home, honest = f"http://127.0.0.1:{found.server_port}", remote.public
        monkeypatch.setattr(remote, "public", lambda address: address == "127.0.0.1" or honest(address))
        assert remote.fetch(f"{home}/x", 1000, 5.0) == remote.fetch(f"{home}/on", 1000, 5.0) == b"x" * 10
        wrong = {
            "away": "not public",
            "ftp": "not an http",
            "round": "more than 5 redirects",
            "large": "more than 1000 bytes",
            "slow": "0.5 s",
        }
        for path, message in wrong.items():
            with pytest.raises(MmspecError, match=message):
                remote.fetch(f"{home}/{path}", 1000, 0.5)
        found.shutdown()
