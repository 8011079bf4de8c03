"""Random models, trees and drafters small enough to test with."""

import random
from functools import cache
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmspec import drafters
from mmspec.drafters.amphista import AmphistaDrafter
from mmspec.drafters.base import Drafter, TrainedDrafter
from mmspec.drafters.falcon import FalconDrafter
from mmspec.drafters.hawk import HawkDrafter
from mmspec.drafters.hawk_path import HawkPathDrafter
from mmspec.drafters.hydra import HydraDrafter
from mmspec.drafters.medusa import MedusaDrafter
from mmspec.drafters.redrafter import ReDrafter
from mmspec.drafters.vadusa import VadusaDrafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree
from mmspec.targets.base import Grid, Target
from mmspec.targets.causal import CausalTarget, Prompts
from mmspec.targets.image import ImageTarget

OFFSET, CODES, GRID = 8, 31, Grid(6, 5, end_of_row=True)
TEXTS = [[1, 3, 4, 2], [1, 5, 2], [1, 2]]


@cache
def llama(
    vocabulary: int = 40, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
) -> LlamaForCausalLM:
    """A random Llama whose laws are peaked enough to be interesting."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=512,
            initializer_range=0.2,
            eos_token_id=None,
        )
        return LlamaForCausalLM(config).to(dtype).to(device).eval()


def image_target(dtype: torch.dtype = torch.float64, device: str = "cpu") -> ImageTarget:
    """Codes on a small grid whose rows are closed by an end-of-row token."""
    model = llama(OFFSET + CODES + 1, dtype, device)
    return ImageTarget(model, range(OFFSET, OFFSET + CODES), GRID, row_end=OFFSET + CODES)


def text_target(vocabulary: int = 40, dtype: torch.dtype = torch.float64) -> CausalTarget:
    return CausalTarget(llama(vocabulary, dtype))


def prompts(texts: list[list[int]] = TEXTS, guidance: float = 1.0) -> Prompts:
    """Conditional prompts, and a second stream, with the same last token, when there is guidance."""
    return Prompts(texts, [[1, text[-1]] for text in texts] if guidance != 1.0 else None, guidance)


def plain(
    target: Target,
    length: int,
    sampling: SamplingOptions = SamplingOptions(),
    seed: int = 5,
    texts: list[list[int]] = TEXTS,
    guidance: float = 1.0,
) -> list[list[int]]:
    """What plain autoregressive decoding says, one row at a time; row b has seed + b."""
    return [
        generate(target, prompts([text], guidance), 1, Stop(length), sampling=sampling, seeds=[seed + row]).tokens[0]
        for row, text in enumerate(texts)
    ]


UNTRAINED = ("none", "lookup", "jacobi", "recycling", "aded", "hierarchy", "stand")
TRAINED = ("medusa", "vadusa", "hawk", "hawk-path", "amphista", "falcon", "hydra", "redrafter")
ASKED = ("del",)
COMPOSED = ("cascade:jacobi", "rasd:hawk-path")
DRAFTERS = (*UNTRAINED, *ASKED, *TRAINED, *COMPOSED)


def drafter(name: str, target: CausalTarget, seed: int = 1) -> Drafter:
    """A drafter by name; those with weights are random."""
    if name in (*UNTRAINED, *ASKED):
        return drafters.load(name, None, target)
    if name in COMPOSED:
        outer, _, inner = name.partition(":")
        composed: Any = drafters.names()[outer].load()
        return composed(drafter(inner, target, seed))
    stride, width = GRID.stride, target.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "medusa":
            built: TrainedDrafter = MedusaDrafter(width, stride, [(0, 2), (0, 3), (0, 4)])
        elif name == "vadusa":
            built = VadusaDrafter(width, heads=4, vocabulary=target.vocabulary_size, rank=4, inner=8)
        elif name == "amphista":
            built = AmphistaDrafter(width, heads=3, window=3)
        elif name == "falcon":
            built = FalconDrafter(width, depth=4)
        elif name == "hydra":
            built = HydraDrafter(width, heads=3)
        elif name == "redrafter":
            built = ReDrafter(width)
        elif name == "hawk":
            built = HawkDrafter(width, stride, [(0, 2), (0, 3), (0, 4), (1, 0), (1, 1)])
        else:
            near = [(1, 0), (1, 1), (1, -1)]
            built = HawkPathDrafter(
                width,
                target.vocabulary_size,
                width=16,
                inner=32,
                neighbours=near,
                grid=(GRID.height, GRID.width),
                stride=stride,
                depth=4,
            )
        for weight in built.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    return built.to(target.device, target.dtype).eval()


def random_parents(rng: random.Random, size: int) -> list[int]:
    """Parents of a random tree of `size` nodes: bushy, deep or in between."""
    reach = rng.choice([1, 2, size])
    return [-1] + [rng.randrange(max(0, node - reach), node) for node in range(1, size)]


def forest(parents: list[list[int]], tokens: list[list[int]], device: torch.device | str = "cpu") -> DraftTree:
    """Rows of different sizes as one draft tree, padded."""
    width = max(map(len, parents))
    depths = []
    for row in parents:
        known: list[int] = []
        for parent in row:
            known.append(0 if parent < 0 else known[parent] + 1)
        depths.append(known + [0] * (width - len(row)))
    return DraftTree(
        torch.tensor([row + [0] * (width - len(row)) for row in tokens], device=device),
        torch.tensor([row + [-1] * (width - len(row)) for row in parents], device=device),
        torch.tensor(depths, device=device),
        max(map(max, depths)),
    )


def children(tree: DraftTree) -> list[list[list[int]]]:
    """For each row and node, its child nodes in order."""
    return [
        [[child for child, parent in enumerate(row) if child and parent == node] for node in range(tree.size)]
        for row in tree.parents.tolist()
    ]


class OracleDrafter(Drafter):
    """Random trees of any shape, a different size for each row; knows the answers and gives them away often.

    Siblings differ, wrong guesses outnumber right ones, and the right child comes anywhere among its siblings.
    """

    name = "oracle"

    def __init__(
        self, answers: list[list[int]], vocabulary: int, max_nodes: int = 14, honesty: float = 0.9, seed: int = 0
    ):
        self.answers, self.vocabulary, self.max_nodes, self.honesty = answers, vocabulary, max_nodes, honesty
        self.random = random.Random(seed)

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        shapes, tokens = [], []
        for row, answer in enumerate(self.answers):
            parents, guesses = self._tree(answer[state.counts[row] :], limit)
            shapes.append(parents)
            tokens.append([int(state.roots[row]), *guesses])
        return forest(shapes, tokens, state.roots.device)

    def _tree(self, answer: list[int], limit: int) -> tuple[list[int], list[int]]:
        wanted = random_parents(self.random, self.random.randint(1, self.max_nodes + 1))
        parents, depths, guesses, right = [-1], [0], [], [True]
        places: dict[int, int] = {0: 0}
        spoken: dict[int, set[int]] = {}
        for node, parent in list(enumerate(wanted))[1:]:
            if parent not in places or depths[places[parent]] >= limit:
                continue
            above = places[parent]
            used = spoken.setdefault(above, set())
            truth = answer[depths[above]] if right[above] and depths[above] < len(answer) else None
            if truth is None or truth in used or self.random.random() > self.honesty:
                truth = self.random.choice([token for token in range(self.vocabulary) if token not in used])
            used.add(truth)
            places[node] = len(parents)
            right.append(right[above] and depths[above] < len(answer) and truth == answer[depths[above]])
            parents.append(above)
            depths.append(depths[above] + 1)
            guesses.append(truth)
        return parents, guesses
