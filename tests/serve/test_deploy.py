"""What a server behind a proxy, or called from a browser, needs: hosts, origins, paths, names, ids, logs, pages."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serve_cases import KEY, PROMPT, TEXT, serving

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

pytestmark = pytest.mark.slow

ORIGIN = "https://app.example.org"
RIGHT = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "log"


@pytest.fixture(scope="module")
def proxied(folders, log: Path) -> Iterator[str]:
    """A server with a key, for pages of one origin, hosts of a domain, a path of a proxy, and other names of models."""
    options = ["--models", *folders[:2], "--cors-origins", ORIGIN, "--allowed-hosts", "*.example.org"]
    with serving(
        log, *options, "--root-path", "/speak", "--alias", "dall-e-3=tiny", "tts-1=tiny-speech", key=KEY
    ) as it:
        yield it


def test_browsers(proxied: str) -> None:
    """A page of the origin may call without asking for the key first, and read ids and errors; others may not."""
    url = f"{proxied}/v1/images/generations"
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    preflight = httpx.options(url, headers={"origin": ORIGIN} | asks)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert (
        "access-control-allow-origin" not in httpx.options(url, headers={"origin": "https://evil.org"} | asks).headers
    )
    refused = httpx.post(url, json={}, headers={"origin": ORIGIN})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in refused.headers["access-control-expose-headers"]


def test_without_origins_no_page_may_call(address: str) -> None:
    assert "access-control-allow-origin" not in httpx.get(f"{address}/health", headers={"origin": ORIGIN}).headers


def test_hosts(proxied: str) -> None:
    for host, status in (("api.example.org", 200), ("localhost", 200), ("example.org", 400), ("evil.net", 400)):
        assert httpx.get(f"{proxied}/health", headers={"host": host}).status_code == status, host


@pytest.mark.parametrize("prefix", ["", "/speak"])
def test_paths_and_pages(proxied: str, prefix: str) -> None:
    """With and without the proxy's prefix in the path: health by GET and HEAD, and a page that needs no other host."""
    base = proxied + prefix
    assert httpx.get(f"{base}/health").status_code == httpx.head(f"{base}/health").status_code == 200
    assert httpx.head(f"{base}/health").content == b""
    assert httpx.get(f"{base}/").headers["location"] == "/speak/docs"
    page = httpx.get(f"{base}/docs").text
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    for path in re.findall(r"(?:src|href)=\"([^\"]+)\"", page):
        assert httpx.get(f"{proxied}{path}").status_code == 200 and path.startswith("/speak/"), path
    assert "/speak/openapi.json" in page
    assert httpx.get(f"{base}/v1/models").status_code == 401
    assert httpx.get(f"{base}/v1/models", headers=RIGHT).status_code == 200


def test_the_page_without_a_root_path(address: str) -> None:
    page = httpx.get(f"{address}/docs").text
    paths = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert len(paths) >= 3 and all(httpx.get(f"{address}{path}").status_code == 200 for path in paths)


@pytest.mark.filterwarnings("ignore:sentence")
def test_other_names(proxied: str) -> None:
    """A client that is fixed to OpenAI's names is served, and the list names them."""
    client = openai.OpenAI(base_url=f"{proxied}/v1", api_key=KEY, max_retries=0)
    assert {model.id for model in client.models.list()} == {"tiny", "tiny-speech", "dall-e-3", "tts-1"}
    assert client.models.retrieve("tts-1").id == "tts-1"
    assert client.images.generate(prompt=PROMPT, model="dall-e-3").model == "tiny"
    assert client.audio.speech.create(model="tts-1", voice="ada", input=TEXT, extra_body={"seed": 1}).read()
    with pytest.raises(openai.NotFoundError, match="no model 'dall-e-3' for text-to-speech"):
        client.audio.speech.create(model="dall-e-3", voice="ada", input=TEXT)


def test_ids_and_the_log(proxied: str, log: Path) -> None:
    """A request's id comes back, one is made where there is none or a bad one, and a line says how it went."""
    body = {"prompt": PROMPT, "seed": 1}
    given = httpx.post(f"{proxied}/v1/images/generations", json=body, headers=RIGHT | {"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    made = {httpx.get(f"{proxied}/health", headers={"x-request-id": "a b"}).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2 and all(name.startswith("req_") for name in made)
    line = next(line for line in log.read_text().splitlines() if "abc-1" in line)
    pattern = (
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ .*127\.0\.0\.1 POST /v1/images/generations 200 \d+\.\d{3} s tiny abc-1"
    )
    assert re.search(pattern, line), line
    assert KEY not in log.read_text()


def test_bodies_that_are_no_json(proxied: str) -> None:
    url = f"{proxied}/v1/images/generations"
    for content, headers, message in (
        (b'{"prompt": ', {"content-type": "application/json"}, "the body: it is no JSON (Expecting value at character"),
        (json.dumps({"prompt": "x"}).encode(), {}, "the body: send JSON, with Content-Type: application/json"),
    ):
        found = httpx.post(url, content=content, headers=RIGHT | headers)
        assert found.status_code == 400 and message in found.json()["error"]["message"], found.text


def test_limits_of_openai(proxied: str) -> None:
    """Without `--text`, 4,096 characters are spoken, and a prompt for a picture has up to 32,000."""
    for path, body, message in (
        ("audio/speech", {"input": "x" * 4097}, "input has 4097 characters, and 4096 are the most"),
        ("audio/speech", {"input": "x" * 4096, "voice": "eve"}, "voice=eve"),
        ("images/generations", {"prompt": "x" * 32_001}, "prompt has 32001 characters, and 32000 are the most"),
        ("images/generations", {"prompt": "x " * 16_000}, "tokens and this model reads at most"),
    ):
        found = httpx.post(f"{proxied}/v1/{path}", json=body, headers=RIGHT, timeout=60)
        assert found.status_code == 400 and message in found.json()["error"]["message"], found.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alias", "dall-e-3"], "--alias dall-e-3: give NAME=MODEL, as in dall-e-3=emoji-64"),
        (["--alias", "a=emoji-64", "a=wren-86"], "--alias a=wren-86: a stands for emoji-64 already"),
        (["--root-path", "speak/"], "--root-path speak/: give a path such as /mmspec"),
        (["--text", "0"], "--text 0 is out of range: give at least 1"),
    ],
)
def test_options_that_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    from mmspec.cli import main

    with pytest.raises(SystemExit, match="2"):
        main(["serve", *options])
    assert message in " ".join(capsys.readouterr().err.split())
