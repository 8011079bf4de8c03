"""`mmspec image`: files, metadata, exit codes and the text of every error."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from mmspec.pipelines.text_to_image import TextToImagePipeline

PROMPT = "a red heart, 3d style"


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
    assert (
        run("image", PROMPT, "-o", "plain.png", "--seed", 7, "--guidance", 2.5, "--dtype", "fp64", "--drafter", "none")[
            0
        ]
        == 0
    )
    assert Image.open("plain.png").tobytes() == picture.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heart.png", "plain.png"]


def test_unquoted_and_piped(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words without quotes are the prompt; - writes a PNG to standard output, and the result says where all went."""
    import io
    import sys

    assert run("image", *PROMPT.split(), "-o", "a.png", "--seed", 7, "--quiet") == (0, "", "")
    assert run("image", PROMPT, "-o", "b.png", "--seed", 7, "--quiet")[0] == 0
    picture = Image.open("a.png")
    assert picture.text["prompt"] == PROMPT and picture.tobytes() == Image.open("b.png").tobytes()
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    code, _, err = run("image", PROMPT, "-o", "-", "--seed", 7, "--progressive", "fill.gif")
    assert code == 0 and err.startswith("standard output, fill.gif: ")
    piped = Image.open(io.BytesIO(out.buffer.getvalue()))
    assert piped.format == "PNG" and piped.tobytes() == picture.tobytes() and piped.text["seed"] == "7"
    assert "standard output takes one picture, not 2" in run("image", PROMPT, "-o", "-", "--n", 2)[2]
    monkeypatch.setattr(out, "isatty", lambda: True)
    assert "cannot write a picture to a terminal" in run("image", PROMPT, "-o", "-")[2]
    assert not list(tmp_path.glob("standard*"))


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
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    file = folder / "transformer" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    code, _, err = run("image", PROMPT, "--model", folder, "--device", "cpu", model=False)
    assert code == 2 and "model.safetensors is truncated" in err


def test_deterministic(run) -> None:
    """The picture of plain decoding in bf16; other precisions are refused."""
    command = ("image", PROMPT, "--seed", 3, "--device", "cpu", "--dtype", "bf16", "--deterministic")
    for name in ("jacobi", "none"):
        assert run(*command, "-o", f"{name}.png", "--drafter", name)[0] == 0
    assert Image.open("jacobi.png").tobytes() == Image.open("none.png").tobytes()
    code, _, err = run(*command, "--dtype", "fp32")
    assert code == 2 and "deterministic passes are known in bf16 on a CPU, not in torch.float32 on cpu" in err
