"""What the server describes and counts, what it refuses, and requests of its own schema."""

import json
import re

import httpx
import hypothesis
import pytest
from PIL import Image
from serve_cases import PROMPT, TEXT, chat

schemathesis = pytest.importorskip("schemathesis")
# Parsed beside the threads of a server, Python 3.11 may fail to read it.
pytest.importorskip("schemathesis.specs.openapi.schemas")
positive_data_acceptance = pytest.importorskip("schemathesis.specs.openapi.checks").positive_data_acceptance
pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

pytestmark = pytest.mark.slow


WRONG = [
    ("images/generations", {"prompt": ""}, 400, "prompt is empty"),
    (
        "images/generations",
        {"prompt": PROMPT, "model": "nobody"},
        404,
        "no model 'nobody' for text-to-image is served here: there is tiny",
    ),
    ("images/generations", {"prompt": PROMPT, "model": "/etc/passwd"}, 404, "no model"),
    ("images/generations", {"prompt": PROMPT, "model": "tiny-speech"}, 404, "no model 'tiny-speech' for text-to-image"),
    ("images/generations", {"prompt": PROMPT, "drafter": "../../x"}, 400, "unknown drafter"),
    ("images/generations", {"prompt": PROMPT, "drafter": "owner/drafter"}, 400, "unknown drafter"),
    ("images/generations", {"prompt": PROMPT, "acceptance": "nonsense"}, 400, "unknown acceptance"),
    ("images/generations", {"prompt": PROMPT, "quality": "hd"}, 400, "quality: Input should be 'auto'"),
    ("images/generations", {"prompt": PROMPT, "colour": "red"}, 400, "colour: Extra inputs are not permitted"),
    ("images/generations", {"prompt": PROMPT, "size": "1024x1024"}, 400, "tiny draws 16x16"),
    ("images/generations", {"prompt": PROMPT, "n": 5}, 400, "at most 4"),
    ("images/generations", {"prompt": PROMPT, "response_format": "url"}, 400, "response_format"),
    ("images/generations", {"prompt": "x" * 501}, 400, "prompt has 501 characters, and 500 are the most"),
    ("images/generations", {}, 400, "prompt: Field required"),
    ("images/generations", [], 400, "the body"),
    ("audio/speech", {"input": "", "voice": "ada"}, 400, "no text|nothing to say|empty"),
    ("audio/speech", {"input": TEXT, "voice": "eve"}, 400, "tiny-speech has ada, ben"),
    ("audio/speech", {"input": TEXT, "response_format": "mp4"}, 400, "response_format"),
    ("audio/speech", {"input": TEXT, "speed": 2.0}, 400, "speed"),
    ("chat/completions", {"messages": []}, 400, "messages"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "tools": [{}]},
        400,
        "tools: List should have",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "acceptance": "tolerance:65"},
        400,
        "from 1 to 64",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "x" * 300}] * 2},
        400,
        "have 600 characters, and 500 are the most",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "stop": [""]},
        400,
        "a stop sequence is empty",
    ),
    ("nowhere", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), WRONG)
def test_wrong_requests(address: str, path: str, body, status: int, message: str) -> None:
    answer = httpx.post(f"{address}/v1/{path}", json=body, timeout=60)
    assert answer.status_code == status
    assert re.search(message, answer.json()["error"]["message"]), answer.text


def test_broken_bodies(address: str) -> None:
    """No JSON, too large with and without a stated length, a huge picture, a wrong length."""
    url = f"{address}/v1/images/generations"
    assert httpx.post(url, content=b"{", headers={"content-type": "application/json"}).status_code == 400
    large = json.dumps({"prompt": "x" * 1_100_000}).encode()
    assert httpx.post(url, content=large).status_code == 413
    chunked = httpx.post(
        url, content=iter([large[:600_000], large[600_000:]]), headers={"content-type": "application/json"}
    )
    assert chunked.status_code == 413 and "1000000 bytes" in chunked.json()["error"]["message"]
    body = {"messages": chat("what?", Image.new("1", (5000, 5000)))}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert answer.status_code == 400 and "1 pictures with 25000000 pixels" in answer.json()["error"]["message"]
    body = {"messages": [message for _ in range(9) for message in chat("what?", Image.new("1", (8, 8)))]}
    assert "9 pictures with" in httpx.post(f"{address}/v1/chat/completions", json=body).json()["error"]["message"]
    assert httpx.get(f"{address}/health", headers={"host": "evil.example"}).status_code == 400
    assert httpx.get(f"{address}/health").json()["status"] == "ok"


def test_models_health_metrics(address: str, client) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny-speech", "tiny-vision"]
    found = client.models.retrieve("tiny-speech")
    assert found.voices == ["ada", "ben"] and "vadusa" in found.drafters and found.task == "text-to-speech"
    assert httpx.get(f"{address}/v1/models/nobody").status_code == 404
    assert httpx.get(f"{address}/health").json()["models"] == ["tiny", "tiny-speech", "tiny-vision"]
    client.images.generate(prompt=PROMPT)
    text = httpx.get(f"{address}/metrics").text
    assert re.search(r'mmspec_requests_total\{path="/v1/images/generations",status="200"\} [1-9]', text)
    assert re.search(r'mmspec_tokens_total\{model="tiny"\} [1-9]', text)
    assert 'mmspec_rows_running{model="tiny"} 0.0' in text


def test_what_is_described(address: str) -> None:
    """Requests made up from the OpenAPI description, right and wrong: answers are as described, and never a server
    error.
    """
    seen = []
    for found in schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations():
        operation = found.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
        )
        def check(case) -> None:
            case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])

        check()
        seen.append(operation.path)
    assert {"/v1/images/generations", "/v1/audio/speech", "/v1/chat/completions", "/v1/models", "/health"} <= set(seen)
