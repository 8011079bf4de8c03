"""The benchmark on prompts of one's own: rows of every task and family, what is kept by prompt, tables and plots."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny import llama
from tiny_text import save_chat_model

from mmspec import drafters
from mmspec.bench import own, own_report
from mmspec.bench.own import GENERATE, LOOKUP, PLAIN, Answer
from mmspec.engine.loop import Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError
from mmspec.targets.base import Prompts
from mmspec.targets.causal import CausalTarget

pytest.importorskip("matplotlib")

UNTRAINED = [name for name in drafters.usable(None) if name != "none"]
QUESTIONS = [{"prompt": "hello?"}, {"prompt": "what is it, said he."}, {"prompt": "who are you?"}]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which width is fastest, and plots, take long and are of no interest here; tests/cli/test_bench.py has both."""
    monkeypatch.setattr(own, "choose_min_query_len", lambda target, prompts, length: None)
    monkeypatch.setattr(own_report, "plot", lambda results, path: None)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("text") / "letters")


def measure(folder: Path, prompts: list[dict], out: Path, *names: object, **options: object) -> dict:
    """Results of a run in fp64."""
    out.mkdir(exist_ok=True)
    own.run("model", folder, prompts, out, [str(name) for name in names], dtypes=["fp64"], **options)
    return json.loads((out / "results.json").read_text())


def by_label(results: dict, temperature: float) -> dict[str, dict]:
    return {row["label"]: row for row in results["rows"] if row["temperature"] == temperature}


def test_text(text_folder: Path, tmp_path: Path) -> None:
    """equality: all rows say what plain decoding says, `generate` too where it is greedy (fp64); sums over prompts are
    those of the row; a small model that drafts assists `generate` as well.
    """
    small = Path(shutil.copytree(text_folder, tmp_path / "small"))
    results = measure(text_folder, QUESTIONS, tmp_path / "out", "lookup", small, temperatures=[0.0, 1.0], tokens=20)
    assisted = "transformers, assisted by small"
    for temperature in (0.0, 1.0):
        rows = by_label(results, temperature)
        assert list(rows) == [PLAIN, GENERATE, LOOKUP, assisted, "lookup", "small"]
        for label, row in rows.items():
            sampled = "transformers" in label and temperature
            assert row["equal"] == (None if sampled else 3) and len(row["prompts"]) == 3
            tokens, seconds, rounds = (sum(p[name] for p in row["prompts"]) for name in ("tokens", "seconds", "rounds"))
            assert row["tokens"] == tokens and row["tokens_per_second"] == pytest.approx(tokens / seconds)
            assert row["mean_acceptance_length"] == pytest.approx(tokens / rounds)
            low, high = row["speedup_interval"]
            assert low <= row["speedup"] <= high and (low < high) == (label != PLAIN)
        for label in (LOOKUP, assisted):
            assert rows[label]["lengths"] is None and rows[label]["nodes_per_round"] is None
        assert rows[PLAIN]["accepted_by_depth"] == [] and rows[PLAIN]["lengths"].keys() == {"1"}
    # The same model as drafter is accepted, by transformers and by the loop; passes of the target are counted.
    assert by_label(results, 0.0)[assisted]["mean_acceptance_length"] > 1.5
    assert by_label(results, 0.0)["small"]["accepted_by_depth"][0] > 0.7
    assert results["missing"] == [] and results["task"] == "image-text-to-text"
    assert [(prompt["prompt"], prompt["seed"]) for prompt in results["prompts"]] == [
        (row["prompt"], seed) for seed, row in enumerate(QUESTIONS)
    ]
    report = (tmp_path / "out" / "results.md").read_text()
    assert report.count("## fp64, T = ") == 2 and "3 of 3" in report and str(tmp_path) not in report


def test_defaults(text_folder: Path, tmp_path: Path) -> None:
    """All usable drafters; the model's own sampling, top-k too; what is named twice is measured once."""
    folder = Path(shutil.copytree(text_folder, tmp_path / "model"))
    config = {"do_sample": True, "temperature": 0.5, "top_k": 7}
    (folder / "generation_config.json").write_text(json.dumps(config))
    results = measure(folder, QUESTIONS[:1], tmp_path / "out", tokens=6)
    assert list(by_label(results, 0.5)) == [PLAIN, GENERATE, LOOKUP, *UNTRAINED]
    assert all(row["setting"].startswith("fp64, T = 0.5, top_k 7, passes of ") for row in results["rows"])
    assert all(row["speedup_interval"] is None for row in results["rows"])
    again = measure(folder, QUESTIONS[:1], tmp_path / "out", "lookup", "none", "lookup", tokens=6)
    assert list(by_label(again, 0.5)) == [PLAIN, GENERATE, LOOKUP, "lookup"]


def test_pictures(model_folder: Path, tmp_path: Path) -> None:
    """With guidance transformers has no prompt lookup: a dash, and why; drafters are measured with it (fp64)."""
    results = measure(model_folder, [{"prompt": "a red heart"}, {"prompt": "a cat face"}], tmp_path / "out")
    rows = by_label(results, 1.0)
    assert list(rows) == [PLAIN, GENERATE, *UNTRAINED] and {row["tokens"] for row in rows.values()} == {128}
    assert rows["jacobi"]["equal"] == rows["lookup"]["equal"] == 2 and rows["jacobi"]["guidance"] == 2.0
    assert [entry["label"] for entry in results["missing"]] == [LOOKUP]
    report = (tmp_path / "out" / "results.md").read_text()
    assert f"| {LOOKUP} | – | – |" in report and f"{LOOKUP}: guidance keeps a cache of its own" in report


def test_processors_of_a_family(tmp_path: Path) -> None:
    """`generate` applies what the pipeline does: OuteTTS penalises what came of late alone (fp64)."""
    from tiny_speakers import save_outetts

    folder, lines = save_outetts(tmp_path / "model"), [{"prompt": "one two."}, {"prompt": "a red heart"}]
    rows = by_label(measure(folder, lines, tmp_path / "out", "lookup", temperatures=[0.0], tokens=24), 0.0)
    assert rows[GENERATE]["equal"] == 2 and rows[GENERATE]["tokens"] == 48


def test_speech(speech_folder: Path, tmp_path: Path) -> None:
    """Voices take turns where lines name none; every drafter of the model's folder is measured (fp64)."""
    lines = [{"prompt": "one."}, {"prompt": "one."}, {"prompt": "one.", "voice": "ada"}]
    results = measure(speech_folder, lines, tmp_path / "out", tokens=30)
    rows = by_label(results, 1.0)
    assert list(rows)[-1] == "vadusa" and all(row["equal"] == 3 for label, row in rows.items() if "trans" not in label)
    names = [prompt["id"] for prompt in results["prompts"]]
    assert names[0] == names[2] != names[1]


def test_questions_about_pictures(vision_folder: Path, tmp_path: Path) -> None:
    """Questions with a picture, with two and with none in one run; prompts are told apart by what is in pictures."""
    for name in ("red", "blue"):
        Image.new("RGB", (32, 32), name).save(tmp_path / f"{name}.png")
    red, blue = str(tmp_path / "red.png"), str(tmp_path / "blue.png")
    lines: list[dict] = [
        {"prompt": "what is it? what is it?", "image": red},
        {"prompt": "which?", "images": [red, blue]},
        {"prompt": "why?"},
    ]
    results = measure(vision_folder, lines, tmp_path / "out", temperatures=[0.0], tokens=12)
    rows = by_label(results, 0.0)
    assert list(rows) == [PLAIN, GENERATE, LOOKUP, *UNTRAINED, "msd"] and not results["missing"]
    # This random model says the token of a picture, which prompt lookup must not.
    assert all(row["equal"] == 3 for label, row in rows.items() if label != LOOKUP)
    other = own.identity(lines[0] | {"image": blue})
    assert results["prompts"][0]["id"] == own.identity(lines[0]) != other
    shutil.copy(red, tmp_path / "copy.png")
    assert own.identity(lines[0] | {"image": str(tmp_path / "copy.png")}) == own.identity(lines[0])


def test_prompt_lookup_copies_no_pictures(tmp_path: Path) -> None:
    """equality: words that come again are followed by the place of a picture, which must not be copied (fp64)."""
    from tiny_readers import save_reader

    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    lines = [{"prompt": "what is it? what is it?", "image": str(tmp_path / "red.png")}]
    folder = save_reader("gemma3", tmp_path / "model")
    results = measure(folder, lines, tmp_path / "out", "lookup", temperatures=[0.0], tokens=16)
    rows = by_label(results, 0.0)
    assert not results["missing"] and {row["equal"] for row in rows.values()} == {1}


def test_what_does_not_fit(text_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    """A drafter of another vocabulary is an error and no missing row; so are pictures that nobody reads."""
    other = Path(shutil.copytree(text_folder, tmp_path / "other"))
    text = json.loads((other / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(MmspecError, match="another vocabulary than the target"):
        measure(text_folder, QUESTIONS, tmp_path / "out", "lookup", other)
    assert not list((tmp_path / "out").iterdir())
    picture = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    with pytest.raises(MmspecError, match=r"prompt 2 \('what\?'\): this language model reads no pictures"):
        measure(text_folder, [*QUESTIONS[:1], {"prompt": "what?", "image": str(picture)}], tmp_path / "out")
    with pytest.raises(MmspecError, match="is a text-to-image model and reads no pictures: leave image out"):
        measure(model_folder, [{"prompt": "a heart", "images": [str(picture)]}], tmp_path / "out")


def test_transformers_fails(text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a family's own code cannot do is a dash with its words, even where the first prompt went well."""
    real, calls = own.reference.own_ids, []

    def sometimes(target: object, prompts: Prompts, stop: Stop, sampling: object, options: dict) -> list[int]:
        calls.append(options)
        if options and len(calls) > 2:
            raise ValueError("assisted generate is not supported\nfor this model")
        return real(target, prompts, stop, sampling, options)

    monkeypatch.setattr(own.reference, "own_ids", sometimes)
    results = measure(text_folder, QUESTIONS[:2], tmp_path / "out", "lookup", temperatures=[0.0], tokens=6)
    assert list(by_label(results, 0.0)) == [PLAIN, GENERATE, "lookup"]
    why = "assisted generate is not supported for this model"
    assert [(entry["label"], entry["why"]) for entry in results["missing"]] == [(LOOKUP, why)]


def test_own_generates_take_no_drafts() -> None:
    """A family whose `generate` is not that of all would pass drafts over, and be measured as if it had them."""
    from tiny_janus import janus

    target = CausalTarget(llama())
    assert own.why_not_assisted(target, Prompts([[1]])) == ""
    assert "cache of its own" in own.why_not_assisted(target, Prompts([[1]], [[2]], 2.0))
    stub = SimpleNamespace(model=janus())
    assert "has a generate of its own" in own.why_not_assisted(stub, Prompts([[1]]))  # type: ignore[arg-type]


def answer(ids: list[int], runs: list[int], drafter: str = "lookup") -> Answer:
    stats = GenerationStats(drafter, target=2.0, total=2.0, runs=[runs])
    return Answer(ids, stats, len(runs), Counter(runs[1:]))


def test_what_is_not_equal_is_said() -> None:
    """One wrong token, or one too few, is a prompt that is not equal; `generate` may go on after a stall."""
    plain = answer([4, 5, 6], [1, 1, 1], "none")
    for ids, equal in (([4, 5, 6], True), ([4, 9, 6], False), ([4, 5], False), ([4, 5, 6, 7], False)):
        assert own.prompt_fields(answer(ids, [1, 2]), plain, True)["equal"] is equal
        longer = own.prompt_fields(answer(ids, [1, 2], "transformers"), plain, True)["equal"]
        assert longer is (ids[:3] == [4, 5, 6])
    assert own.prompt_fields(answer([4, 9, 6], [1, 2]), plain, False)["equal"] is None


def test_lengths_and_depths() -> None:
    """Of six rounds that verify drafts two accept nothing, one accepts three tokens; the first token has none."""
    parts = [answer([], [1, 1, 2, 4]), answer([], [1, 1, 2, 2])]
    fields = own.add_lengths(parts)
    assert fields["lengths"] == {"1": 2, "2": 3, "4": 1}
    assert fields["accepted_by_depth"] == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    unknown = own.add_lengths([parts[0], replace(parts[1], lengths=None)])
    assert set(unknown.values()) == {None}
    row = {"label": "lookup", "drafter": "lookup", **fields}
    assert own_report.depth_tables([row])[1] == (
        "| tokens | 1 | 2 | 3 | 4 |\n|---|---|---|---|---|\n| lookup | 33 % | 50 % | 0 % | 17 % |"
    )
    assert own_report.depth_tables([row])[3].endswith("| lookup | 67 % | 17 % | 17 % |")
    long = row | own.add_lengths([answer([], [1, 1, *range(2, 12)])])
    assert "| 8 | 9 or more |" in own_report.depth_tables([long])[1]
    assert own_report.depth_tables([long])[1].endswith("| 9 % | 27 % |")
    assert own_report.depth_tables([]) == []


def test_labels() -> None:
    """Folders and hub ids by their last part, unless two have the same."""
    assert own.labels_of(["lookup", "/a/b/eagle", "me/small"]) == {
        "lookup": "lookup",
        "/a/b/eagle": "eagle",
        "me/small": "small",
    }
    assert own.labels_of(["/a/x", "/b/x"]) == {"/a/x": "/a/x", "/b/x": "/b/x"}


def test_sampled_by_generate() -> None:
    """Sampling options reach `generate` whatever the model's configuration says; torch's seed decides (fp64)."""
    target, ids = CausalTarget(llama()), Prompts([[1, 2, 3]])
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(own.reference.own_ids(target, ids, Stop(12), SamplingOptions(1.0)))
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 12
    torch.manual_seed(3)
    single = own.reference.own_ids(target, ids, Stop(12), SamplingOptions(1.0, top_k=1))
    assert single == own.reference.greedy_ids(target, ids, Stop(12), SamplingOptions(1.0))
