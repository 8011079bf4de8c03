"""Chameleon draws what its output head says of codes, drafted or not, alone or in a batch, and decodes none of it."""

from pathlib import Path

import pytest
import torch
from tiny import OracleDrafter, drafter
from tiny_chameleon import BOI, BOS, CODES, PROMPTS, SIDE, chameleon, save_chameleon

import mmspec
from mmspec import cli
from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.chameleon import ChameleonTarget
from mmspec.targets.image import ImageTarget

COUNT, EMPTY = SIDE**2, [BOS, BOI]


@pytest.fixture(scope="module")
def target() -> ChameleonTarget:
    return ChameleonTarget(chameleon())


def drawn(target: ChameleonTarget, guidance: float, temperature: float, rows=PROMPTS, seed=5, drafted=None) -> list:
    sampling = SamplingOptions(temperature)
    prompts = Prompts(rows, [EMPTY] * len(rows) if guidance != 1 else None, guidance)
    return generate(target, prompts, len(rows), Stop(COUNT), drafted, sampling=sampling, seeds=seed).tokens


def all_drafters(target: ChameleonTarget, answers: list[list[int]]) -> list[Drafter]:
    """Drafters that need no training, and random trees that hold many right answers."""
    oracles = [OracleDrafter(answers, target.vocabulary_size, seed=seed) for seed in range(3)]
    return [*(drafter(name, target) for name in ("none", "jacobi", "lookup")), *oracles]


@torch.inference_mode()
def stepwise(prompt: list[int], guidance: float, seed: int | None) -> list[int]:
    """The codes that the model's layers and its head give over the whole sequence, with the noise of `seed` or none."""
    rows, codes = [list(prompt), list(EMPTY)], []
    noise = Noise([seed or 0], len(CODES), greedy=seed is None)
    for place in range(COUNT):
        hidden = [chameleon().model(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
        conditional, unconditional = (chameleon().lm_head(vector)[CODES] for vector in hidden)
        scores = unconditional + guidance * (conditional - unconditional)
        codes.append(int((scores + noise.gumbel([place], 1)[0, 0]).argmax()))
        for row in rows:
            row.append(CODES[codes[-1]])
    return codes


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_tokens_are_those_of_the_own_layers(target: ChameleonTarget, guidance: float) -> None:
    """equality: greedy, and at T = 1 with the same noise (fp64)."""
    for row, prompt in enumerate(PROMPTS):
        assert drawn(target, guidance, 0.0, [prompt]) == [stepwise(prompt, guidance, None)]
        assert drawn(target, guidance, 1.0, [prompt], 5 + row) == [stepwise(prompt, guidance, 5 + row)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_drafts_and_batches_equal_plain_decoding(target, guidance: float, temperature: float) -> None:
    """equality: three rows of different length give what each gives alone, drafted or not (fp64)."""
    plain = [drawn(target, guidance, temperature, [row], 5 + i)[0] for i, row in enumerate(PROMPTS)]
    assert len({str(row) for row in plain}) == 3
    for drafted in all_drafters(target, plain):
        assert drawn(target, guidance, temperature, drafted=drafted) == plain
    for drafted in all_drafters(target, plain[:1]):
        assert drawn(target, guidance, temperature, PROMPTS[:1], drafted=drafted) == plain[:1]


def test_the_forward_of_transformers_is_refused() -> None:
    """negative control: read as any model of codes, it does not give its own logits."""
    with pytest.raises(MmspecError, match="does not give its own logits"):
        ImageTarget(chameleon(), CODES, Grid(SIDE, SIDE))


class Stripes:
    """A decoder: the brightness of a pixel is its code."""

    codes, scale = len(CODES), 1

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes[:, None].repeat(1, 3, 1, 1) * 10 / 127.5 - 1).double()


def test_folder(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Codes by the public way, pictures by a decoder that is given, and a refusal in one line without one."""
    folder, options = save_chameleon(tmp_path / "model"), dict(device="cpu", dtype="fp64")
    pipe = mmspec.pipeline("text-to-image", folder, **options)
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a cat", seed=3, output_type="latent")
    assert out.images.shape == (1, SIDE, SIDE) and out.images.flatten().tolist() == out.tokens[0]
    prompt = pipe.encode(["a cat"], 3.0)
    assert prompt.conditional[0][-1] == BOI and prompt.unconditional == [EMPTY] and prompt.guidance == 3.0
    with pytest.raises(MmspecError, match="transformers has no decoder for the codes of chameleon models"):
        pipe("a cat")
    with pytest.raises(SystemExit):
        cli.main(["image", "cat", "--model", str(folder), "-o", str(tmp_path / "cat.png"), "--device", "cpu"])
    assert "no decoder for the codes of chameleon" in capfd.readouterr().err and not (tmp_path / "cat.png").exists()
    painted = mmspec.pipeline("text-to-image", folder, image_tokenizer=Stripes(), **options)
    painted.set_progress_bar_config(disable=True)
    picture = painted("a cat", seed=3).images[0]
    assert [value // 10 for value in picture.convert("L").tobytes()] == out.tokens[0]
