"""What the demo's tabs share, without a browser: models, visitors, live numbers, code, names, the race's order."""

import json
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio")

from mmspec.demo import parts  # noqa: E402
from mmspec.demo.ask import examples, text_of  # noqa: E402
from mmspec.demo.choice import choose_models, choose_tabs  # noqa: E402
from mmspec.demo.image import file_name, with_name  # noqa: E402
from mmspec.demo.names import known_names, unknown_notice  # noqa: E402
from mmspec.demo.plain import Beside  # noqa: E402
from mmspec.demo.race import Step, race  # noqa: E402
from mmspec.demo.speech import cost, rule  # noqa: E402
from mmspec.demo.stage import Stage, as_seed, row_rate  # noqa: E402
from mmspec.engine.stats import GenerationStats  # noqa: E402
from mmspec.errors import MmspecError  # noqa: E402
from mmspec.pipelines.solo import Solo  # noqa: E402


@pytest.fixture(scope="module")
def stage(model_folder: Path, speech_folder: Path):
    told: list[str] = []
    names = choose_models((str(model_folder), str(speech_folder)), [])
    stage = Stage(names, "cpu", "fp64", tell=told.append)
    assert [line.split(",")[1] for line in told] == [" model 1 of 2", " model 2 of 2"]
    yield stage
    stage.close()


def test_models_are_chosen_before_they_are_loaded(model_folder: Path, speech_folder: Path) -> None:
    image, speech = str(model_folder), str(speech_folder)
    assert choose_tabs(["race", "IMAGE"]) == ["Race", "Image"]
    with pytest.raises(MmspecError, match="unknown tab 'chess'"):
        choose_tabs(["chess"])
    assert choose_models((image, speech), ["Image"]) == {"text-to-image": image}
    assert len(choose_models((image, speech), ["Image", "Race"])) == 2
    with pytest.raises(MmspecError, match="tiny and .*tiny are both for text-to-image: name one"):
        choose_models((image, image), [])
    with pytest.raises(MmspecError, match="no model for text-to-speech is named: name one, such as wren-86"):
        choose_models((image,), ["Speech"])


def test_a_visitor_who_starts_again(stage) -> None:
    """The earlier generation of the same visitor ends; that of another visitor goes on."""
    player = stage.player("text-to-image")
    with player.session("ann") as first, player.session("bob") as other, player.session("ann") as second:
        assert first.interrupt and not other.interrupt and not second.interrupt
        player.stop("ann")
        assert second.interrupt and not other.interrupt
        assert stage.running("ann") and stage.running("bob")
    assert not player.sessions and not stage.running("ann")
    with pytest.raises(gr.Error, match="the prompt is empty"), player.session("ann") as session:
        list(session.stream(" "))
    assert not player.sessions
    with pytest.raises(MmspecError, match="no model for image-text-to-text is loaded"):
        stage.player("image-text-to-text")


@pytest.mark.parametrize("drafter", ["none", "jacobi"])
def test_plain_decoding_is_timed_beside_a_run(stage, drafter: str) -> None:
    """Every run has a plain rate of its own, and its tokens are those that it has without."""
    player = stage.player("text-to-image")
    with player.session("ann") as session:
        part = list(session.stream("a red heart", seed=3, drafter=drafter))[-1]
    assert player.plain.rate([part.stats]) > 0
    assert "× plain decoding, which would do" in player.numbers([part.stats]).replace("**", "")
    alone = player.pipe("a red heart", seed=3, session=player.pipe.session(Solo()))
    assert alone.tokens == part.tokens


def test_speech_is_timed_sentence_by_sentence(stage) -> None:
    player = stage.player("text-to-speech")
    with player.session("ann") as session:
        chunk = list(session.stream("Hello there. And you?", seed=3))[-1]
    assert len(chunk.output.sentence_stats) == 2
    assert "plain decoding, which would do" in player.numbers(chunk.output.sentence_stats)


def test_live_numbers(stage) -> None:
    """Speed against plain decoding, without the first token, which comes with the prompt."""
    player = stage.player("text-to-image")
    stats = GenerationStats("jacobi", prefill=1.0, target=1.0, accept=1.0, total=3.0, runs=[[1, 2, 2]])
    assert row_rate([stats]) == row_rate([stats, stats]) == 2.0
    assert "not timed yet" in player.numbers([stats])
    player.plain._beside.append(Beside(stats, [0.05, 0.15]))
    assert player.plain.rate([stats]) == pytest.approx(10)
    line = player.numbers([stats])
    assert "**2 tokens/s** · 1.67 tokens per round · **0.20 ×** plain decoding, which would do 10 tokens/s" in line
    assert "drafter jacobi, acceptance exact: the same output as plain decoding" in line
    stats.acceptance = "tolerance:1"
    assert "acceptance exact" in player.numbers([stats])
    stats.lossless, stats.acceptance = False, "tolerance:3"
    assert "acceptance tolerance:3: **not** the same output" in player.numbers([stats])
    assert player.numbers([GenerationStats(runs=[[1]])]) == ""


def test_who_is_behind_in_the_race_goes_on() -> None:
    def racer(seconds: list[float]):
        for total in seconds:
            yield Step([], GenerationStats(total=total), lambda over: {})

    totals = [[step.stats.total for step in steps] for steps in race([racer([1, 2, 3]), racer([1.5, 4])])]
    assert totals == [[1, 1.5], [2, 1.5], [2, 4], [3, 4]]


def test_code(stage) -> None:
    """Code that runs, with the settings as they are and without those that are not given."""
    player = stage.player("text-to-image")
    settings = {"seed": 7, "guidance_scale": 2.0, "temperature": 0.7, "drafter": None}
    code = parts.call(player, "text-to-image", [parts.repr_code('a "red" heart')], settings, "seeds = out.seeds")
    assert 'dtype="float64"' in code and "guidance_scale=2," in code and "drafter" not in code
    found: dict = {}
    exec(code, found)
    assert found["seeds"] == [7]


def test_names(tmp_path: Path) -> None:
    assert known_names(None) == known_names(tmp_path) == []
    lines = ["a red heart, 3d style", "a red heart, flat style", "an ant, flat style"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": line}) for line in lines))
    names = known_names(tmp_path)
    assert names == ["an ant", "a red heart"]
    for prompt in ("a red heart", "A red  heart on a green background, flat style", "an ant,3d", ""):
        assert unknown_notice(prompt, names) == ""
    for prompt in ("an antelope", "two ants", "zorblax"):
        assert "learnt 2 names" in unknown_notice(prompt, names)
    assert unknown_notice("zorblax", []) == ""
    assert with_name("an ant", "a red heart, flat style") == "an ant, flat style"
    assert with_name("an ant", "a red heart") == "an ant"
    assert file_name("A red heart, 3D!", 7) == "a-red-heart-3d-seed-7.png" and file_name("♥", 1) == "picture-seed-1.png"


def test_what_the_page_gives_and_shows(tmp_path: Path) -> None:
    """Seeds, rules, messages, sample pictures, and the table of what tolerance costs."""
    assert (as_seed(None), as_seed(7.0)) == (None, 7)
    assert (rule(1), rule(3.0)) == ("exact", "tolerance:3")
    assert text_of("a") == text_of([{"type": "text", "text": "a"}]) == text_of(["a"]) == "a"
    assert examples(None) == examples(tmp_path) == []
    assert cost(None, "vadusa") == cost(tmp_path, "vadusa") == ""
    row = {"drafter": "vadusa", "mean_acceptance_length": 2.5, "word_error_rate": 0.1, "over_ar_error": 0.01}
    rows = [row | {"acceptance": f"tolerance:{tau}", "over_ar": tau / 100 - 0.01} for tau in (1, 3)]
    (tmp_path / "quality.json").write_text(json.dumps({"sentences": 4, "rows": rows}))
    table = cost(tmp_path, "vadusa")
    assert "| 1 (exact) | 2.50 |" in table and "| 3 | 2.50 | 10.0 % | +2.0 ± 1.0 |" in table
    assert cost(tmp_path, "jacobi") == ""
