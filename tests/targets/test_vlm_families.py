"""Families of transformers that read pictures or sounds: what mmspec generates is what the model itself would."""

import pytest
import torch
from tiny import OracleDrafter, drafter
from torch import Tensor
from vlm_families import FAMILIES, asked, built, model
from vlm_inputs import ROWS, SPECIAL
from vlm_table_more import REFUSED

from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.registry import READERS, target_of
from mmspec.targets.vision_language import VisualPrompts

# With this seed no row says a special token, which the model's own forward would read in another way.
LENGTH, SEED = 20, 12
QUICK = ("qwen3_vl", "gemma3", "idefics3")
families = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow, pytest.mark.sweep]) for name in FAMILIES],
)


def said(name: str, rows: list[dict[str, Tensor]], kind: str, temperature: float, seed: int = SEED) -> list[list[int]]:
    """Tokens of all rows in one batch."""
    target = target_of(model(name))
    drafted = drafter(kind, target)
    sampling = SamplingOptions(temperature)
    return generate(
        target, VisualPrompts.of(rows), len(rows), Stop(LENGTH), drafted, sampling=sampling, seeds=seed
    ).tokens


@families
def test_greedy_equals_transformers_generate(name: str) -> None:
    """Rows without a picture, with one and with two in one batch say what `generate` of the model makes of each."""
    rows = [asked(name, sizes, seed) for seed, sizes in enumerate(ROWS)]
    with torch.inference_mode():
        wanted = [
            model(name).generate(**row, do_sample=False, max_new_tokens=LENGTH, pad_token_id=0)[0] for row in rows
        ]
    assert said(name, rows, "none", 0.0) == [
        ids[row["input_ids"].shape[1] :].tolist() for ids, row in zip(wanted, rows, strict=True)
    ]


@families
def test_samples_are_the_models_own(name: str) -> None:
    """At T = 1 every token is argmax(log p + noise), with the law of the model's own forward without a cache."""
    rows = [asked(name, sizes, seed) for seed, sizes in enumerate(ROWS)]
    for seed, (row, tokens) in enumerate(zip(rows, said(name, rows, "none", 1.0), strict=True)):
        assert not set(tokens) & set(SPECIAL)
        longer, prompt = dict(row), row["input_ids"].shape[1]
        for key, value in row.items():
            if value.shape[:2] == row["input_ids"].shape:
                known = {"input_ids": [tokens], "attention_mask": [[1] * LENGTH]}
                new = torch.tensor(known.get(key) or [FAMILIES[name].kinds[key][2:] * LENGTH])
                longer[key] = torch.cat([value, new], 1)
        with torch.inference_mode():
            logits = model(name)(**longer, use_cache=False).logits[0, prompt - 1 : -1].double()
        noise = Noise([SEED + seed], logits.shape[-1]).gumbel([0], LENGTH)[0]
        assert tokens == (logits.log_softmax(1) + noise).argmax(1).tolist()


@families
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafters_change_nothing(name: str, temperature: float) -> None:
    """Drafted by any of them, alone or in a batch, rows say what they say plainly."""
    rows, target, sampling = (
        [asked(name, sizes, seed) for seed, sizes in enumerate(ROWS)],
        target_of(model(name)),
        SamplingOptions(temperature),
    )
    wanted = said(name, rows, "none", temperature)
    for first, last in ((0, 3), (0, 1), (1, 2), (2, 3)):
        oracle = OracleDrafter(wanted[first:last], target.vocabulary_size)
        for drafted in (oracle, *(drafter(kind, target) for kind in ("none", "jacobi", "lookup"))):
            prompts = VisualPrompts.of(rows[first:last])
            found = generate(
                target, prompts, last - first, Stop(LENGTH), drafted, sampling=sampling, seeds=SEED + first
            ).tokens
            assert found == wanted[first:last], drafted.name


@families
def test_pictures_are_seen(name: str) -> None:
    """The negative control: other pictures or sounds under the same words, other tokens."""
    row = asked(name, ROWS[1])
    other = asked(name, ROWS[1], seed=1) | {"input_ids": row["input_ids"]}
    plain, changed = ([said(name, [it], "none", temperature) for temperature in (0.0, 1.0)] for it in (row, other))
    assert plain != changed


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_by_name(name: str) -> None:
    """Recurrent, convolutional and cross-attention layers, and what transformers itself cannot run."""
    config, why = REFUSED[name]
    with pytest.raises(MmspecError, match=why):
        target_of(built(config()).eval())


def test_every_family_is_tried() -> None:
    """The registry names the families of this module, and no others."""
    assert {family.config().model_type for family in FAMILIES.values()} == set(READERS)
