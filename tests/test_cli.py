"""The command line: files, metadata, help, exit codes and the text of every error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmspec import cli
from mmspec.pipelines.text_to_image import TextToImagePipeline

PROMPT = "a red heart, 3d style"


@pytest.fixture
def run(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """Run a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, model: bool = True) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([*map(str, arguments), *(["--model", str(model_folder), "--device", "cpu"] if model else [])])
        return int(caught.value.code or 0), *capfd.readouterr()

    return call


def test_picture_and_metadata(run, tmp_path: Path) -> None:
    """The PNG says how it was made; the summary line gives the figures; plain decoding draws the same picture."""
    code, out, err = run("image", PROMPT, "-o", "heart.png", "--seed", 7, "--guidance", 2.5, "--dtype", "fp64")
    assert code == 0 and out == ""
    for piece in ("heart.png", "tokens/s", "mean acceptance length", "lossless", "seed 7"):
        assert piece in err
    picture = Image.open("heart.png")
    wanted = {
        "prompt": PROMPT,
        "seed": "7",
        "drafter": "jacobi",
        "acceptance": "exact",
        "lossless": "yes",
        "guidance": "2.5",
        "temperature": "1.0",
        "dtype": "fp64",
    }
    assert wanted.items() <= picture.text.items() and "torch" in picture.text["software"]
    assert run("image", PROMPT, "-o", "plain.png", "--seed", 7, "--guidance", 2.5, "--dtype", "fp64", "--drafter", "none")[0] == 0
    assert Image.open("plain.png").tobytes() == picture.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heart.png", "plain.png"]


def test_lossy_is_said(run) -> None:
    """A lossy rule is named as one in the summary and in the file."""
    _, _, err = run("image", PROMPT, "-o", "lossy.png", "--seed", 1, "--acceptance", "tolerance:3")
    assert "NOT lossless" in err and Image.open("lossy.png").text["lossless"] == "no"


def test_many_pictures(run, tmp_path: Path) -> None:
    """Several files with a seed each, or one sheet; --quiet says nothing."""
    assert run("image", PROMPT, "-o", "many.png", "--n", 3, "--seed", 2, "--quiet") == (0, "", "")
    assert [Image.open(tmp_path / f"many-{i}.png").text["seed"] for i in range(3)] == ["2", "3", "4"]
    assert not (tmp_path / "many.png").exists()
    assert run("image", PROMPT, "-o", "sheet.png", "--n", 4, "--grid", "--quiet")[0] == 0
    assert Image.open("sheet.png").size >= (32, 32)


@pytest.mark.parametrize("name", ["fill.gif", "fill.webp", "fill.png"])
def test_progressive(run, name: str) -> None:
    """The animation has a page for each round, enlarged."""
    assert run("image", PROMPT, "-o", "heart.png", "--seed", 3, "--progressive", name)[0] == 0
    with Image.open(name) as film:
        assert film.n_frames > 8 and film.width > Image.open("heart.png").width


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["image", ""], "the prompt is empty"),
        (["image", "heart " * 80], "tokens and this model reads at most 48"),
        (["image", PROMPT, "--drafter", "jakobi"], "unknown drafter 'jakobi': did you mean 'jacobi'"),
        (["image", PROMPT, "--drafter", "hawk-path"], "drafter 'hawk-path' has no weights for this model"),
        (["image", PROMPT, "--acceptance", "exakt"], "unknown acceptance 'exakt': did you mean 'exact'"),
        (["image", PROMPT, "--acceptance", "exact:2"], "takes no options"),
        (["image", PROMPT, "--guidance", "21"], "out of range: give a number from 0 to 20"),
        (["image", PROMPT, "--temperature", "-1"], "temperature=-1.0 is out of range"),
        (["image", PROMPT, "--top-p", "0"], "top_p=0.0 leaves no token"),
        (["image", PROMPT, "--n", "0"], "out of range"),
        (["image", PROMPT, "--seed", "-4"], "seed=-4 is out of range"),
        (["image", PROMPT, "--dtype", "fp61"], "unknown dtype 'fp61'"),
        (["image", PROMPT, "-o", "heart.bmp"], "heart.bmp"),
        (["image", PROMPT, "-o", "nowhere/heart.png"], "there is no folder"),
        (["image", PROMPT, "-o", "nowhere/heart.png", "--n", "2"], "there is no folder"),
        (["image", PROMPT, "--progressive", "fill.mp4"], "fill.mp4"),
        (["image", PROMPT, "-o", "heart.png", "--progressive", "heart.png"], "give two names"),
    ],
)
def test_wrong_input(run, tmp_path: Path, arguments: list[str], text: str) -> None:
    """One line on standard error, exit code 2, no file."""
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("mmspec: error: ") and text in err and "Traceback" not in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["image", PROMPT, "--model", "emoji-46"], "unknown model 'emoji-46'"),
        (["verify", "emoji-46"], "unknown model 'emoji-46'"),
        (["bench", "image", "--model", "emoji-46", "--device", "cpu"], "unknown model 'emoji-46'"),
        (["bench", "image", "--prompts", "0", "--device", "cpu"], "must be 1 or more"),
        (["bench", "image", "--batch", "0", "--device", "cpu"], "must be 1 or more"),
        (["bench", "image", "--dtype", "fp61", "--device", "cpu"], "unknown dtype 'fp61'"),
        (["bench", "image", "--out", __file__, "--device", "cpu"], "cannot write to"),
        (["train", "nowhere.yaml"], "no recipe at nowhere.yaml"),
        (["train", str(Path(__file__).parent)], "recipe.yaml: give the path of a recipe.yaml"),
        (["image", PROMPT, "--model", "~nobody-of-this-name/x"], "no folder ~nobody-of-this-name/x"),
        (["image", "caf\udce9", "--device", "cpu"], "the prompt is not valid UTF-8"),
        (["image", PROMPT, "--device", "gpu"], "gpu"),
    ],
)
def test_wrong_names(run, arguments: list[str], text: str) -> None:
    code, _, err = run(*arguments, model=False)
    assert code == 2 and err.startswith("mmspec: error: ") and text in err


@pytest.mark.parametrize(
    "arguments", [["image"], ["paint", PROMPT], ["image", PROMPT, "--seeed", "3"], ["image", PROMPT, "--n", "many"], []]
)
def test_bad_arguments(run, arguments: list[str]) -> None:
    """What the parser refuses exits with 2 as well."""
    code, _, err = run(*arguments, model=False)
    assert code == 2 and "Traceback" not in err


def test_old_file_stays(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, the picture that was there is still there, and nothing is left beside it."""
    old = tmp_path / "heart.png"
    old.write_bytes(b"old")
    assert run("image", PROMPT, "-o", "heart.png", "--acceptance", "exakt")[0] == 2

    def fail(self, partial, **options) -> None:
        Path(partial).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", fail)
        code, _, err = run("image", PROMPT, "-o", "heart.png")
    assert code == 2 and "No space left on device" in err
    assert old.read_bytes() == b"old" and list(tmp_path.iterdir()) == [old]


def test_interrupt(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C exits with 130, without a traceback or a file."""

    def interrupt(self, *prompt, **options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TextToImagePipeline, "__call__", interrupt)
    code, _, err = run("image", PROMPT)
    assert code == 130 and "interrupted" in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_damaged_model(run, model_folder: Path, tmp_path: Path) -> None:
    """A truncated weight file is named."""
    import shutil

    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    file = folder / "transformer" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    code, _, err = run("image", PROMPT, "--model", folder, "--device", "cpu", model=False)
    assert code == 2 and "model.safetensors is truncated" in err


@pytest.mark.parametrize("command", ["image", "bench", "train", "verify", "info"])
def test_help_has_an_example(run, command: str) -> None:
    code, out, _ = run(command, "--help", model=False)
    assert code == 0 and f"mmspec {command}" in out.replace(f"usage: mmspec {command}", "")


def test_info(run) -> None:
    """Versions, devices, rules; JSON for machines."""
    code, out, _ = run("info", "--json", model=False)
    found = json.loads(out)
    assert code == 0 and found["acceptance"]["exact"] == "lossless" and found["acceptance"]["typical"] == "lossy"
    assert {"torch", "devices", "models", "drafters", "threads"} <= found.keys()
    code, out, _ = run("info", model=False)
    assert code == 0 and "jacobi" in out


def test_verify(run, model_folder: Path, tmp_path: Path) -> None:
    """Every row equal in float64; the findings are written as JSON."""
    settings = "--prompts 2 --dtype fp64 --temperature 0 1 --guidance 1 3 --batch 1 2 --tokens 12 --drafters jacobi lookup --device cpu --json found.json".split()
    code, out, _ = run("verify", model_folder, *settings, model=False)
    rows = json.loads((tmp_path / "found.json").read_text())
    assert code == 0 and "2/2" in out and len(rows) == 2 * 2 * 2 * 2
    assert all(row["equal"] == row["rows"] == 2 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--prompts", "0"], "must be 1 or more"),
        (["--drafters", "jakobi"], "unknown drafter 'jakobi'"),
        (["--dtype", "fp61"], "unknown dtype 'fp61'"),
        (["--dtype"], "--dtype has no values: give at least one"),
        (["--json", "nowhere/found.json"], "there is no folder"),
        (["--guidance", "99", "--prompts", "1"], "out of range: give a number from 0 to 20"),
    ],
)
def test_verify_refuses(run, model_folder: Path, arguments: list[str], text: str) -> None:
    code, _, err = run("verify", model_folder, "--device", "cpu", *arguments, model=False)
    assert code == 2 and text in err


def test_verify_fails_on_a_difference(run, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drafter whose tokens differ in float64 is found, and the exit code says so (the negative control)."""
    from mmspec import verify

    honest = verify.generate

    def wrong(*arguments, **options):
        done = honest(*arguments, **options)
        if "on_verdict" not in options:
            done.tokens[0][3] ^= 1
        return done

    monkeypatch.setattr(verify, "generate", wrong)
    settings = "--prompts 1 --dtype float64 --temperature 1 --guidance 1 --batch 1 --tokens 8 --drafters jacobi --device cpu".split()
    code, out, _ = run("verify", model_folder, *settings, model=False)
    assert code == 1 and "0/1" in out


def test_module_and_version() -> None:
    """`python -m mmspec --version` answers without importing torch."""
    code = "import sys; sys.argv = ['mmspec', '--version']\ntry:\n import mmspec.__main__\nexcept SystemExit as end:\n print(end.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.stdout.splitlines()[0].startswith("mmspec ") and done.stdout.splitlines()[1] == "0 False", done.stderr
