"""Entries of `generation_config.json` that are applied, that are warned of, and that are wrong."""

import json
import warnings
from pathlib import Path

import pytest
from tiny_janus import save_janus
from tiny_speakers import save_llasa
from tiny_text import save_chat_model
from transformers import GenerationConfig

import mmspec
from mmspec import cli
from mmspec.errors import MmspecError
from mmspec.pipelines.generation_config import APPLIED, NO_TOKENS, check_entries, not_applied, speaker_defaults


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "llama")


OTHERS = {
    **{"min_new_tokens": 3, "min_length": 2, "sequence_bias": [[[5], 1.0]], "forced_eos_token_id": 1},
    **{"forced_bos_token_id": 0, "encoder_repetition_penalty": 1.2, "encoder_no_repeat_ngram_size": 2},
    **{"stop_strings": ["."], "watermarking_config": {"bias": 2.0}, "guidance_scale": 1.5, "top_h": 0.4},
    **{"penalty_alpha": 0.6, "dola_layers": "low", "constraints": [1], "force_words_ids": [[3]], "num_beams": 4},
    **{"typical_p": 0.5, "begin_suppress_tokens": [3], "exponential_decay_length_penalty": [2, 1.1], "max_time": 1.0},
    **{"token_healing": True, "an_entry_of_tomorrow": 1},
}


def test_others_are_told() -> None:
    """All but what is applied and what changes no token, of whatever transformers knows."""
    assert not_applied(OTHERS) == list(OTHERS)
    assert not_applied(GenerationConfig._get_default_generation_params()) == not_applied(GenerationConfig().to_dict())
    assert not_applied(GenerationConfig().to_dict()) == []
    assert not_applied({"do_sample": True, "top_k": 3, "min_p": 0.1, "max_length": 9, "pad_token_id": 0}) == []
    assert not_applied({"bos_token_id": 1, "decoder_start_token_id": 1, "_from_model_config": True}) == []
    asked = {"no_repeat_ngram_size": 3, "suppress_tokens": [3], "bad_words_ids": [[3]]}
    assert not_applied(asked) == list(asked) and not_applied(asked, APPLIED) == []
    known = GenerationConfig().__dict__.keys()
    assert {*APPLIED, *NO_TOKENS} - known <= {"return_legacy_cache", "generation_kwargs"}


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        ({"no_repeat_ngram_size": "3"}, "no_repeat_ngram_size='3': it must be a whole number from 0 up"),
        ({"suppress_tokens": [40]}, r"suppress_tokens=\[40\]: it must be a list of ids of tokens, below 40"),
        ({"suppress_tokens": 3}, "suppress_tokens=3: it must be a list of ids"),
        ({"bad_words_ids": [3]}, r"bad_words_ids=\[3\]: it must be a list of lists of ids"),
        ({"eos_token_id": "2"}, "eos_token_id='2': it must be one id or a list of ids"),
        ({"eos_token_id": [2, 40]}, r"eos_token_id=\[2, 40\]: it must be one id or a list of ids of tokens, below 40"),
        ({"eos_token_id": -1}, "eos_token_id=-1: it must be one id"),
    ],
)
def test_wrong_entries(entries: dict, wrong: str) -> None:
    """The file and the entry are named."""
    with pytest.raises(MmspecError, match=f"generation_config.json says {wrong}"):
        check_entries(entries, 40)
    check_entries({"eos_token_id": [2, 39], "suppress_tokens": [], "bad_words_ids": [[3]]}, 40)


def test_speakers() -> None:
    """What the file says goes before what the authors say, and no sampling before both."""
    assert speaker_defaults({"do_sample": True, "top_p": 0.5}, {"top_k": 25}) == {
        **{"temperature": 1.0, "top_k": 25, "top_p": 0.5}
    }
    assert speaker_defaults({"do_sample": False, "temperature": 0.3}, {})["temperature"] == 0.0


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([*map(str, arguments)])
    return int(end.value.code or 0), *capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{", "generation_config.json cannot be read"),
        ("[]", "generation_config.json cannot be read (it must hold an object)"),
        ('{"no_repeat_ngram_size": "3"}', "generation_config.json says no_repeat_ngram_size='3'"),
        ('{"eos_token_id": "x"}', "generation_config.json says eos_token_id='x'"),
        ('{"eos_token_id": 5000}', "generation_config.json says eos_token_id=5000"),
    ],
)
def test_ask_refuses(folder: Path, capsys: pytest.CaptureFixture, text: str, wrong: str) -> None:
    """A damaged file, and entries that are wrong, are errors of one line."""
    path = folder / "generation_config.json"
    old = path.read_text()
    try:
        path.write_text(text)
        code, _, err = run(capsys, "ask", "Hello?", "--model", folder, "--device", "cpu")
        assert code == 2 and wrong in err and len(err.splitlines()) == 1
    finally:
        path.write_text(old)


@pytest.mark.parametrize(
    ("task", "save"), [("text-to-image", save_janus), ("text-to-speech", save_llasa)], ids=["janus", "llasa"]
)
def test_pictures_and_speech(task: str, save, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Their processors would take codes for words: a warning names them. `info` says what speakers do."""
    folder = save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mmspec.pipeline(task, folder, device="cpu", dtype="fp32")
    path = folder / "generation_config.json"
    entries = json.loads(path.read_text()) | {"do_sample": False, "no_repeat_ngram_size": 3, "suppress_tokens": [3]}
    path.write_text(json.dumps(entries))
    with pytest.warns(UserWarning, match="has no_repeat_ngram_size, suppress_tokens, which mmspec does not apply"):
        pipe = mmspec.pipeline(task, folder, device="cpu", dtype="fp32")
    code, out, _ = run(capsys, "info", folder, "--json")
    assert code == 0 and json.loads(out)["defaults"]["temperature"] == pipe.temperature == 0.0
