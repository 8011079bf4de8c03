"""Sampling as a model's `generation_config.json` says."""

import json
from pathlib import Path

import pytest
from tiny_text import save_chat_model

import mmspec
from mmspec import cli
from mmspec.errors import MmspecError
from mmspec.pipelines.generation_config import read_generation_config, sampling_defaults

SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_chat_model(tmp_path / "llama")


def describe(folder: Path, **entries) -> None:
    """Write entries to the folder's `generation_config.json`."""
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("config", "samples", "expected"),
    [
        ({}, False, (0.0, 0, 1.0, 1.0)),
        ({}, True, (1.0, 0, 1.0, 1.0)),
        ({"do_sample": False, "temperature": 0.3, "top_k": 7}, True, (0.0, 7, 1.0, 1.0)),
        (SAMPLED, False, (0.6, 50, 0.9, 1.1)),
        ({"do_sample": True, "top_k": 0}, False, (1.0, 0, 1.0, 1.0)),
    ],
)
def test_defaults(config: dict, samples: bool, expected: tuple) -> None:
    """As `generate` takes them: greedy unless it says otherwise, and the 50 best where it says nothing of top-k."""
    found = sampling_defaults(config, samples)
    assert (found["temperature"], found["top_k"], found["top_p"], found["repetition_penalty"]) == expected


def test_pipeline(folder: Path) -> None:
    """A pipeline samples so, and its processors are those of `generate`; what is given comes before."""
    describe(folder, **SAMPLED)
    pipe = mmspec.pipeline("image-text-to-text", folder, device="cpu", dtype="fp64")
    options = pipe.read_options({})[0]
    assert (options.temperature, options.top_k, options.top_p, options.repetition_penalty) == (0.6, 50, 0.9, 1.1)
    assert pipe.read_options({"top_k": 0, "temperature": 1.0})[0].top_k == 0
    mine = pipe(None, "Hello?", max_new_tokens=24, temperature=0, drafter="jacobi").tokens[0]
    ids = pipe.processor.tokenizer("<user>Hello?<assistant>", return_tensors="pt")
    own = pipe.transformer.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids.input_ids.shape[1] :].tolist()
    assert mine == [token for token in own if token not in pipe.ends]
    triples = list(zip(mine, mine[1:], mine[2:]))
    assert len(set(triples)) == len(triples)


def test_warning(folder: Path) -> None:
    """What is not applied is said."""
    describe(folder, do_sample=True, typical_p=0.5)
    with pytest.warns(UserWarning, match="has typical_p, which mmspec does not apply"):
        mmspec.pipeline("image-text-to-text", folder, device="cpu", dtype="fp32")


def test_info(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """`mmspec info` shows them; a damaged file is an error."""
    describe(folder, **SAMPLED)
    with pytest.raises(SystemExit):
        cli.main(["info", str(folder), "--json"])
    defaults = json.loads(capsys.readouterr().out)["defaults"]
    assert defaults["temperature"] == 0.6 and defaults["top_k"] == 50 and defaults["no_repeat_ngram_size"] == 3
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(MmspecError, match="generation_config.json cannot be read"):
        read_generation_config(folder)


def test_verify(folder: Path, tmp_path: Path) -> None:
    """Drafters and `generate` are compared under the same processors."""
    describe(folder, no_repeat_ngram_size=3)
    out = tmp_path / "found.json"
    settings = "--prompts 2 --dtype fp64 --temperature 0 --batch 2 --tokens 24 --drafters lookup --device cpu --json"
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", str(folder), *settings.split(), str(out)])
    assert not end.value.code
    row = json.loads(out.read_text())[0]
    assert row["equal"] == row["generate_equal"] == 2
