"""Cache consistency: cached logits are uncached ones, whatever trees and paths came before."""

import gc
import random
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import children, forest, llama, prompts, random_parents, text_target
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from mmspec.engine.cache import TreeCache, causal
from mmspec.errors import MmspecError
from mmspec.targets.causal import SLOT_MULTIPLE, CausalTarget


def random_tree(rng: random.Random, roots: list[int], vocabulary: int, most: int):
    """A ragged batch of random trees under the given roots."""
    parents = [random_parents(rng, rng.randint(1, most)) for _ in roots]
    return forest(
        parents,
        [[root] + [rng.randrange(vocabulary) for _ in row[1:]] for root, row in zip(roots, parents, strict=True)],
    )


def random_path(rng: random.Random, tree, row: int) -> list[int]:
    """A path from the root that may end anywhere."""
    below, path = children(tree)[row], [0]
    while below[path[-1]] and rng.random() < 0.8:
        path.append(rng.choice(below[path[-1]]))
    return path


def other_model(kind: str):
    """A random model of another family: absolute positions, or grouped heads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "gpt2":
            config = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3)
            return GPT2LMHeadModel(config).double().eval()
        config = Qwen2Config(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            initializer_range=0.3,
        )
        return Qwen2ForCausalLM(config).double().eval()


MODELS = {"llama": llama, "gpt2": lambda: other_model("gpt2"), "qwen2": lambda: other_model("qwen2")}


def check_rounds(
    target: CausalTarget, seed: int, texts: list[list[int]], rounds: int, guidance: float = 1.0, close: float = 1e-9
) -> None:
    """Rounds of random trees and paths; each node's logits equal those of the whole prefix without a cache."""
    rng, most = random.Random(seed), 9
    given_prompts = prompts(texts, guidance)
    capacity = rounds * most + most + 1
    state = target.prefill(given_prompts, capacity, True)
    for _ in range(rounds):
        tree = random_tree(rng, state.roots.tolist(), target.vocabulary_size, most)
        out, ancestors = target.forward(state, tree), tree.ancestors
        for row in range(len(texts)):
            for node in range(tree.size):
                if node and tree.parents[row, node] < 0:
                    continue
                path = tree.tokens[row, ancestors[row, node]].tolist()[1:]
                streams = [
                    stream[row] + state.tokens[row] + path
                    for stream in (given_prompts.conditional, given_prompts.unconditional)
                    if stream
                ]
                with torch.inference_mode():
                    whole = [target.model(torch.tensor([ids])).logits[0, -1] for ids in streams]
                wanted = whole[0] if len(whole) == 1 else whole[1] + guidance * (whole[0] - whole[1])
                torch.testing.assert_close(out.logits[row, node], wanted, rtol=close, atol=close)
        paths = [random_path(rng, tree, row) if rng.random() < 0.85 else [] for row in range(len(texts))]
        new = [
            [int(tree.tokens[row, node]) for node in path[1:]] + [rng.randrange(target.vocabulary_size)] if path else []
            for row, path in enumerate(paths)
        ]
        with torch.inference_mode():
            state.commit(paths, new, out.hidden)
    assert state.cache.lengths[: len(texts)].tolist() == [
        len(text) - 1 + len(tokens) for text, tokens in zip(texts, state.tokens, strict=True)
    ]


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=6), min_size=1, max_size=3),
    st.sampled_from([1.0, 2.5]),
)
def test_cached_equals_uncached(seed: int, texts: list[list[int]], guidance: float) -> None:
    """Ragged batches, random trees, random paths (rows may commit nothing), with and without guidance: equal to 1e-9 in
    fp64.
    """
    check_rounds(text_target(), seed, texts, 4, guidance)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("seed", range(3))
def test_other_families(kind: str, seed: int) -> None:
    """Unmodified transformers models of other families run on the tree cache."""
    check_rounds(CausalTarget(MODELS[kind]()), seed, [[1, 3, 4], [2], [5, 6]], 3)


def test_eager_attention() -> None:
    """A model that was loaded with eager attention takes the same mask; its softmax is float32 whatever its dtype."""
    model = other_model("qwen2")
    model.set_attn_implementation("eager")
    check_rounds(CausalTarget(model), 0, [[1, 3, 4], [2]], 2, close=1e-5)


def test_features_are_of_the_committed_path() -> None:
    """features[:, b, i] is the hidden state that predicted token i, as a pass over the whole prefix computes it."""
    target, rng = text_target(), random.Random(3)
    texts = [[1, 3, 4], [2]]
    state = target.prefill(prompts(texts), 60, True)
    for _ in range(4):
        tree = random_tree(rng, state.roots.tolist(), target.vocabulary_size, 9)
        out = target.forward(state, tree)
        paths = [random_path(rng, tree, row) for row in range(2)]
        with torch.inference_mode():
            state.commit(
                paths,
                [[int(tree.tokens[row, node]) for node in path[1:]] + [7] for row, path in enumerate(paths)],
                out.hidden,
            )
    for row, text in enumerate(texts):
        with torch.inference_mode():
            whole = target.model.base_model(torch.tensor([text + state.tokens[row]])).last_hidden_state[0]
        count = state.counts[row]
        torch.testing.assert_close(
            state.features[0, row, :count], whole[len(text) - 1 : len(text) - 1 + count], rtol=1e-9, atol=1e-9
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 10))
def test_commit_compacts(seed: int, rows: int, width: int) -> None:
    """After commits of arbitrary paths each row holds its accepted entries, in order, without gaps."""
    rng = random.Random(seed)
    cache = TreeCache(2, rows, 3 * width)
    kept: list[list[float]] = [[] for _ in range(rows)]
    for step in range(3):
        cache.open(width)
        written = torch.arange(rows * width, dtype=torch.float64).view(rows, 1, width, 1) + 1000 * (step + 1)
        for layer in cache.layers:
            layer.update(written, -written)
        paths = [sorted(rng.sample(range(width), rng.randint(0, width))) for _ in range(rows)]
        cache.commit(paths)
        for row, path in enumerate(paths):
            kept[row] += written[row, 0, path, 0].tolist()
    for number in range(2):
        keys, values = cache.committed(number)
        for row, wanted in enumerate(kept):
            assert keys[row, 0, : len(wanted), 0].tolist() == wanted
            assert values[row, 0, : len(wanted), 0].tolist() == [-value for value in wanted]
    assert cache.lengths.tolist() == [len(wanted) for wanted in kept]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 7))
def test_mask(seed: int, lengths: list[int], most: int) -> None:
    """A node sees its row's committed slots, and of the tree its own ancestors; nothing else."""
    tree = random_tree(random.Random(seed), [0] * len(lengths), 5, most)
    cache = TreeCache(1, len(lengths), 30)
    cache.advance(lengths)
    cache.open(tree.size)
    mask, ancestors = cache.mask(tree.ancestors), tree.ancestors
    for row, length in enumerate(lengths):
        for node in range(tree.size):
            wanted = set(range(length)) | {
                length + above for above in ancestors[row, node].nonzero().flatten().tolist()
            }
            assert set(mask[row, 0, node].nonzero().flatten().tolist()) == wanted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 4))
def test_levels_after_one_another(lengths: list[int], first: int, second: int) -> None:
    """Entries that are opened with an offset come after those before, and see them as they are told to."""
    cache = TreeCache(1, len(lengths), 30)
    cache.advance(lengths)
    cache.open(second, offset=first)
    assert cache.slots.tolist() == [list(range(length + first, length + first + second)) for length in lengths]
    seen = torch.ones(len(lengths), second, first + second, dtype=torch.bool).tril(first)
    for row, length in enumerate(lengths):
        for node in range(second):
            slots = cache.mask(seen)[row, 0, node].nonzero().flatten().tolist()
            assert slots == list(range(length + first + node + 1))
    cache.commit([[] for _ in lengths])
    assert cache.lengths.tolist() == lengths


def test_causal() -> None:
    """The ancestors of a prompt are a triangle."""
    assert causal(1, 3, "cpu").int().tolist() == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]


def test_capacity_error() -> None:
    """A tree that does not fit is refused before anything is written."""
    cache = TreeCache(1, 2, 8)
    cache.advance([2, 5])
    with pytest.raises(
        MmspecError,
        match="^the cache holds 8 positions a row and 9 are needed: ask for fewer tokens or a smaller tree$",
    ):
        cache.open(4)


def test_memory_is_committed_plus_one_tree() -> None:
    """The cache is allocated once, for prompt, new tokens and one tree, in whole blocks of slots, and nothing more
    however long it runs.
    """
    target = text_target()
    length, nodes = 20, 6
    state = target.prefill(prompts([[1, 2, 3], [4, 5]]), length + nodes + 1)
    config = target.model.config
    slots = -(-(3 - 1 + length + nodes + 1) // SLOT_MULTIPLE) * SLOT_MULTIPLE
    wanted = 2 * config.num_hidden_layers * 2 * config.num_key_value_heads * slots * config.head_dim * 8
    assert state.cache.capacity == slots and state.cache.bytes == wanted
    before = [layer.keys.data_ptr() for layer in state.cache.layers]
    rng = random.Random(0)
    for _ in range(length // 2):
        tree = random_tree(rng, state.roots.tolist(), target.vocabulary_size, nodes)
        out = target.forward(state, tree)
        with torch.inference_mode():
            first = children(tree)[0][0][:1]
            state.commit(
                [[0, *first], [0]],
                [[1] * (1 + len(first)), [1]],
                out.hidden,
            )
    assert state.cache.bytes == wanted and [layer.keys.data_ptr() for layer in state.cache.layers] == before


def test_memory_is_freed_at_once() -> None:
    """A cache that nobody holds is gone with its keys and values, without waiting for the garbage collector."""
    gc.disable()
    try:
        state = text_target().prefill(prompts([[1, 2, 3]]), 8)
        keys = weakref.ref(state.cache.layers[0].keys)
        assert keys() is not None
        del state
        assert keys() is None
    finally:
        gc.enable()
