"""Vision-language targets: plain decoding is transformers' own, drafted or not, with images of any size, several, or
none.
"""

import pytest
import torch
from tiny import drafter
from tiny_vlm import FAMILIES, IMAGES, asked, model

from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.causal import Prompts
from mmspec.targets.vision_language import VisionLanguageTarget, VisualPrompts


@pytest.mark.parametrize("sizes", IMAGES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_generate(family: str, sizes: list[tuple[int, int]]) -> None:
    """Greedy decoding in our loop, drafted or not, is `transformers.generate` of the whole model (fp64)."""
    row = asked(family, sizes)
    with torch.inference_mode():
        wanted = (
            model(family)
            .generate(**row, do_sample=False, max_new_tokens=20, pad_token_id=0)[0, row["input_ids"].shape[1] :]
            .tolist()
        )
    target = VisionLanguageTarget(model(family))
    for name in ("none", "jacobi", "lookup"):
        found = generate(
            target, VisualPrompts.of([row]), 1, Stop(20), drafter(name, target), sampling=SamplingOptions(0)
        )
        assert found.tokens == [wanted]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_equal_singles(family: str, temperature: float) -> None:
    """Rows with images of different sizes, several or none, give in one batch what each gives alone, drafted or not
    (fp64).
    """
    rows, target, sampling = (
        [asked(family, sizes, seed) for seed, sizes in enumerate(IMAGES)],
        VisionLanguageTarget(model(family)),
        SamplingOptions(temperature),
    )
    alone = [
        generate(target, VisualPrompts.of([row]), 1, Stop(16), sampling=sampling, seeds=[i]).tokens[0]
        for i, row in enumerate(rows)
    ]
    assert len({str(row) for row in alone}) == len(rows)
    for name in ("none", "jacobi", "lookup"):
        found = generate(
            target, VisualPrompts.of(rows), len(rows), Stop(16), drafter(name, target), sampling=sampling, seeds=0
        )
        assert found.tokens == alone


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_matters(family: str) -> None:
    """The negative control: another picture under the same words, another answer."""
    target, row, other = (
        VisionLanguageTarget(model(family)),
        asked(family, [(32, 32)]),
        asked(family, [(32, 32)], seed=1),
    )
    other["input_ids"] = row["input_ids"]
    one, two = (
        generate(target, VisualPrompts.of([each]), 1, Stop(16), sampling=SamplingOptions(0)).tokens
        for each in (row, other)
    )
    assert one != two


def test_what_cannot_be_read_is_refused() -> None:
    """Models of other families, image tokens without an image, and videos, by name."""
    from tiny import llama

    with pytest.raises(
        MmspecError, match="LlamaForCausalLM is no vision-language model that mmspec reads: use one of aria"
    ):
        VisionLanguageTarget(llama())
    target, row = VisionLanguageTarget(model("llava")), asked("llava", [(32, 32)])
    with pytest.raises(MmspecError, match="the prompt has 16 image tokens and no image: give its images too"):
        generate(target, Prompts([row["input_ids"][0].tolist()]), 1, Stop(2))
    with pytest.raises(MmspecError, match="videos are not supported"):
        generate(target, VisualPrompts.of([row | {"pixel_values_videos": row["pixel_values"]}]), 1, Stop(2))
