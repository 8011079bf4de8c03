"""The server's and the demo's use of people's speech language models, without a process of their own."""

from pathlib import Path

import pytest
import tiny_speakers
import torch

import mmspec
from mmspec.serve.hosting import host


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_speakers.save_outetts(tmp_path_factory.mktemp("models") / "outetts")


def test_batched_as_alone(folder: Path) -> None:
    """equality: through the server's batcher, with the family's own processors, a seed says the same (fp64)."""
    pipe = mmspec.pipeline("text-to-speech", folder, device="cpu", dtype="fp64")
    alone = pipe("yes.", seed=3).tokens
    model = host("outetts", "text-to-speech", pipe, rows=2, waiting=4)
    assert model.session()("yes.", seed=3).tokens == alone


@pytest.mark.slow
def test_demo_has_its_voices(tmp_path: Path) -> None:
    """The speech tab is built for a folder of transformers."""
    pytest.importorskip("gradio")
    from mmspec.demo.app import build
    from mmspec.demo.stage import Stage

    folder = tiny_speakers.save_orpheus(tmp_path / "orpheus")
    stage = Stage({"text-to-speech": str(folder)}, "cpu", torch.float32)
    page = build(stage, ["Speech"])
    assert any("tara" in str(block.get("props", {}).get("choices")) for block in page.config["components"])
