"""Drafters that carry a hidden state from token to token, with guidance, on targets that force tokens by place."""

from pathlib import Path

import pytest
import torch
from tiny import image_target, prompts, text_target
from tiny_layouts import write
from tiny_released import SPECULATORS_DFLASH, dflash_weights
from tiny_vlm import built

from mmspec.drafters.registry import by_name
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_is_forced_by_place_is_drafted(guidance: float) -> None:
    """Ends of rows are drafted where they come, and nowhere else."""
    target, drafter, ends = image_target(), built(), 0
    draft, end = drafter.draft, target.vocabulary_size - 1

    def check(state, noise, limit):
        nonlocal ends
        tree = draft(state, noise, limit)
        if tree.height:
            forced = (state.counts[0] + tree.depths[0, 1:] - 1) % target.grid.stride == target.grid.width
            probable = tree.path_probs[0, 1:] > 0
            assert torch.equal((tree.tokens[0, 1:] == end)[probable], forced[probable])
            ends += int((forced & probable).sum())
        return tree

    drafter.draft = check
    generate(target, prompts([[1, 3, 4, 2]], guidance), 1, Stop(target.grid.tokens), drafter)
    assert ends > 3


@pytest.mark.parametrize("tokens", [None, list(range(0, 30, 3))])
def test_pictures_with_ends_of_rows(tokens: list[int] | None) -> None:
    """equality, also where ends of rows are not among what is drafted (fp64); under rejection trees are sampled."""
    target, given, drafter = image_target(), prompts(guidance=3.0), built(tokens=tokens)
    stop = Stop(target.grid.tokens)
    for temperature in (0.0, 1.0):
        options: dict = dict(sampling=SamplingOptions(temperature), seeds=4)
        plain, drafted = (generate(target, given, 3, stop, guesser, **options).tokens for guesser in (None, drafter))
        assert plain == drafted
    sampled = generate(target, given, 3, stop, drafter, rule="rejection").tokens
    assert all(row[target.grid.width] == target.vocabulary_size - 1 for row in sampled)


def test_those_that_read_one_branch_are_refused(tmp_path: Path) -> None:
    drafter = by_name(str(write(tmp_path / "d", SPECULATORS_DFLASH, dflash_weights(12))), None, text_target())
    with pytest.raises(MmspecError, match="this drafter reads one stream, and guidance needs two"):
        generate(text_target(), prompts(guidance=2.0), 3, Stop(2), drafter)
