"""What requests and options may not do, without a model."""

from time import perf_counter

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from mmspec.errors import MmspecError
from mmspec.serve.app import application
from mmspec.serve.chat import StopSequences
from mmspec.serve.serving import Serving


@pytest.mark.parametrize("length", ["9" * 19, "9" * 5000, "-1", "1e3", "²"])
def test_lengths_that_are_none(length: str) -> None:
    """A Content-Length too long for a number, too, is answered, not failed on."""
    with TestClient(application(Serving({})), raise_server_exceptions=False) as client:
        headers = {"content-length": length.encode("latin-1")}
        answer = client.post("/v1/chat/completions", content=b"{}", headers=headers)
    assert answer.status_code == 413 and "more than 20000000 bytes" in answer.json()["error"]["message"]


def test_an_alias_hides_no_model() -> None:
    models = {"tiny": ("text-to-image", None), "other": ("text-to-image", None)}
    with pytest.raises(MmspecError, match="alias other=tiny: a model of that name is served"):
        Serving(models, aliases={"other": "tiny"})  # type: ignore[arg-type]


def test_long_stop_sequences_take_no_time() -> None:
    """Neither those that are longer than the answer nor those that it nearly is."""
    stops = ["a" * 5_000_000, "x" * 3000 + "y", "ba"]
    answer = StopSequences(stops, lambda tokens: "x" * len(tokens))
    began = perf_counter()
    assert answer.push(list(range(2000)), "") == "" and answer.finish() == "x" * 2000
    assert perf_counter() - began < 5
    assert StopSequences(["abab", "bx"], lambda tokens: "xabab"[: len(tokens)]).push([1] * 4, "") == "x"
