"""Deterministic passes: keys and values are those of plain decoding bit for bit, whatever was drafted."""

import pytest
import torch
from tiny import OracleDrafter, drafter, image_target, plain, prompts
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Batch, Stop, generate
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.targets.causal import CausalTarget

LENGTH = 60


def target_of_whole_vectors(dtype: torch.dtype) -> CausalTarget:
    """Heads as wide as a CPU's vectors: the last numbers of a tensor that does not fill them are computed otherwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96)
        config = LlamaConfig(vocab_size=40, initializer_range=0.2, eos_token_id=None, **sizes)
        return CausalTarget(LlamaForCausalLM(config).to(dtype).eval())


def keys_and_values(batch: Batch, row: int, length: int) -> Tensor:
    """The first `length` entries of a row in all layers."""
    layers = batch.state.cache.layers
    return torch.stack([torch.stack([layer.keys[row, :, :length], layer.values[row, :, :length]]) for layer in layers])


def run(target, chosen: Drafter | None, texts: list[list[int]], seeds: list[int]) -> tuple[Batch, list[list[int]]]:
    """A batch of rows that has generated `LENGTH` tokens each, and the tokens."""
    batch = Batch(target, chosen)
    tokens = batch.join(prompts(texts), seeds, Stop(LENGTH)).tokens
    while any(batch.running):
        tokens = [row + new for row, new in zip(tokens, batch.round().tokens, strict=True)]
    return batch, tokens


def differences(target, texts: list[list[int]], seed: int) -> int:
    """Numbers in the caches of a batch, drafted for by an oracle, that differ from plain decoding of each row."""
    seeds = [seed + row for row in range(len(texts))]
    alone = [run(target, None, [text], [seeds[row]]) for row, text in enumerate(texts)]
    oracle = OracleDrafter([tokens[0] for _, tokens in alone], target.vocabulary_size, seed=seed)
    together, _ = run(target, oracle, texts, seeds)
    lengths = [len(text) - 1 + LENGTH - 1 for text in texts]
    return sum(
        int((keys_and_values(together, row, length) != keys_and_values(alone[row][0], 0, length)).sum())
        for row, length in enumerate(lengths)
    )


def test_bits_do_not_depend_on_the_draft() -> None:
    """In bfloat16, in batches of rows of different length."""
    target = target_of_whole_vectors(torch.bfloat16)
    target.deterministic = True
    assert sum(differences(target, [[1, 3, 4, 2], [1, 5, 2], [1, 2]], seed) for seed in range(3)) == 0


def test_trees_change_bits() -> None:
    """The control: without it, paths that are not neighbours in the cache are summed in another order."""
    assert differences(target_of_whole_vectors(torch.float32), [[1, 3, 4, 2]], 0) > 0


def test_drafters_still_pay() -> None:
    """Same tokens as plain decoding, by chains."""
    target = image_target(torch.bfloat16)
    target.deterministic = True
    answers = plain(target, 30)
    for name in ("jacobi", "hawk", "hawk-path", "vadusa"):
        widths = []
        result = generate(
            target,
            prompts(),
            3,
            Stop(30),
            drafter(name, target),
            seeds=5,
            on_accept=lambda state, tree, scores, accepted, widths=widths: widths.append((tree.size, tree.height)),
        )
        assert result.tokens == answers
        assert all(size == height + 1 for size, height in widths) and max(widths)[0] > 1
    oracle = OracleDrafter(answers, target.vocabulary_size, honesty=1.0)
    assert generate(target, prompts(), 3, Stop(30), oracle, seeds=5).stats.mean_acceptance_length > 1.5


def test_first_children() -> None:
    """The chain of a tree: the first child at every node, with its probability; rows of different depth."""
    tokens = torch.tensor([[9, 1, 2, 3, 4, 5], [9, 1, 2, 3, 0, 0]])
    parents = torch.tensor([[-1, 0, 0, 1, 2, 3], [-1, 0, 0, 2, -1, -1]])
    depths = torch.tensor([[0, 1, 1, 2, 2, 3], [0, 1, 1, 2, 0, 0]])
    probs = torch.tensor([[1.0, 0.6, 0.5, 0.4, 0.3, 0.2], [1.0, 0.9, 0.8, 0.7, 0.0, 0.0]])
    chain = DraftTree(tokens, parents, depths, 3, probs).first_children()
    assert chain.tokens[0].tolist() == [9, 1, 3, 5] and chain.tokens[1, :2].tolist() == [9, 1]
    assert chain.parents.tolist() == [[-1, 0, 1, 2], [-1, 0, -1, -1]]
    assert chain.depths.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    torch.testing.assert_close(chain.path_probs, torch.tensor([[1.0, 0.6, 0.4, 0.2], [1.0, 0.9, 0.0, 0.0]]))


def test_a_pipeline_keeps_the_setting(model_folder) -> None:
    """Moving to the same device and dtype builds no other target."""
    pipe = TextToImagePipeline.from_pretrained(model_folder, torch_dtype=torch.bfloat16)
    pipe.deterministic = True
    pipe._target = (("another",), pipe.target)
    assert pipe.target.deterministic and pipe.deterministic


def test_other_devices_and_dtypes_are_refused(model_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = TextToImagePipeline.from_pretrained(model_folder, torch_dtype=torch.float32)
    with pytest.raises(
        MmspecError, match="^deterministic passes are known in bf16 on a CPU, not in torch.float32 on cpu"
    ):
        pipe.deterministic = True
    pipe.to(torch.bfloat16)
    monkeypatch.setattr(TextToImagePipeline, "device", torch.device("cuda"))
    with pytest.raises(MmspecError, match="not in torch.bfloat16 on cuda"):
        pipe.deterministic = True
