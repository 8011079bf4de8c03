"""Recurrent layers: chains over copies of the model's own cache, and what is read again.

Every family is tried in test_text_families.py and test_vlm_families.py.
"""

import random
from pathlib import Path

import pytest
import torch
from recurrent_families import FORGETS, UNSTEADY
from text_families import build, text_family
from tiny import OracleDrafter, drafter, plain, prompts
from tiny_vlm import built

import mmspec
from mmspec.cli.common import summary
from mmspec.drafters.base import Drafter
from mmspec.engine import replay
from mmspec.engine.cost import measure
from mmspec.engine.loop import Batch, Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.tree import DraftTree, chain
from mmspec.errors import MmspecError
from mmspec.pipelines.transformer import check_family
from mmspec.targets.causal import CausalTarget
from mmspec.targets.recurrent import RecurrentTarget
from mmspec.targets.registry import target_of

TEXTS = [[1, 17, 23, 5, 9, 41, 17, 23, 3], [1, 33, 12, 60], [1]]


def falcon() -> RecurrentTarget:
    """Attention and state-space layers side by side, and a scaled head."""
    target = target_of(text_family("Falcon-H1"))
    assert isinstance(target, RecurrentTarget)
    return target


def test_greedy_is_generate_of_transformers() -> None:
    """A random oracle's trees are cut to chains: tokens are `generate`'s, in fewer rounds, and the result says so."""
    target, length = falcon(), 16
    wanted = []
    for text in TEXTS:
        ids = torch.tensor([text])
        options = dict(attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length, eos_token_id=None)
        wanted.append(target.model.generate(ids, **options)[0, len(text) :].tolist())
    oracle = OracleDrafter(wanted, target.vocabulary_size)
    found = generate(target, prompts(TEXTS), 3, Stop(length), oracle, SamplingOptions(0))
    assert found.tokens == wanted and found.stats.mean_acceptance_length > 1.2
    assert found.stats.as_dict()["chains_only"] is True and "oracle (chains only)" in summary(found.stats, 0)
    assert found.stats.cache_bytes > 0 and "chains only" in repr(found.stats)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_every_pass_is_the_whole_prefix(guidance: float) -> None:
    """Chains of random lengths, accepted up to anywhere, row by row: nodes say what the model says without a cache."""
    rng, target = random.Random(0), falcon()
    given = prompts(TEXTS, guidance)
    state = target.prefill(given, 120)
    state.commit([[0]] * 3, [[5]] * 3, state.prefill_output.hidden)
    for turn in range(7):
        width = rng.choice([0, 3, 13])
        guesses = torch.tensor([[rng.randrange(61) for _ in range(width)] for _ in TEXTS], dtype=torch.long)
        lengths = torch.tensor([rng.randint(0, width) for _ in TEXTS])
        tree = chain(state.roots, guesses.view(3, width), lengths)
        out = target.forward(state, tree)
        assert torch.equal(out.logits, target.forward(state, tree).logits), "a pass commits nothing"
        paths = [list(range(rng.randint(1, 1 + int((tree.depths[row] > 0).sum())))) for row in range(3)]
        for row, path in enumerate(paths):
            streams = [branch[row] + state.tokens[row] for branch in (given.conditional, given.unconditional) if branch]
            with torch.inference_mode():
                whole = [
                    target.model(torch.tensor([ids + tree.tokens[row, 1 : len(path)].tolist()]), use_cache=False).logits
                    for ids in streams
                ]
            expected = [logits[0, -len(path) :] for logits in whole]
            mixed = expected[0] if guidance == 1 else expected[1] + guidance * (expected[0] - expected[1])
            torch.testing.assert_close(out.logits[row, : len(path)], mixed, rtol=0, atol=1e-4 * float(mixed.std()))
        state.commit(
            paths, [[*tree.tokens[row, 1 : len(path)].tolist(), turn] for row, path in enumerate(paths)], out.hidden
        )
    assert state.cache.lengths.tolist()[:3] == [len(text) + len(row) - 1 for text, row in zip(TEXTS, state.tokens)]


class Half(Drafter):
    """Chains whose first half is right."""

    name, max_nodes = "half", 4

    def __init__(self, answer: list[int]):
        self.answer = answer

    def draft(self, state, noise, limit: int) -> DraftTree:
        right = self.answer[state.counts[0] : state.counts[0] + 2]
        guesses = [*right, *[(token + 1) % 61 for token in right]][:limit]
        return chain(state.roots, torch.tensor([guesses], dtype=torch.long))


@pytest.mark.slow
@pytest.mark.parametrize(("most", "passes"), [(replay.MAX_UNREAD, 2), (0, 8)])
def test_accepted_nodes_are_read_again_with_the_next_chain(most: int, passes: int, monkeypatch) -> None:
    """Of nine rounds that reject guesses, every third needs a second pass, and not every one; plain decoding none."""
    monkeypatch.setattr(replay, "MAX_UNREAD", most)
    target, count, length = falcon(), 0, 28

    def counted(*_) -> None:
        nonlocal count
        count += 1

    answer = plain(target, length, SamplingOptions(0), texts=TEXTS[:1])[0]
    hook = target.decoder.register_forward_hook(counted)
    try:
        for guesser, extra in ((None, 0), (Half(answer), passes)):
            count = 0
            found = generate(target, prompts(TEXTS[:1]), 1, Stop(length), guesser, SamplingOptions(0))
            assert found.tokens == [answer] and count == found.stats.rounds + extra
    finally:
        hook.remove()
    assert found.stats.rounds == 10


def test_copies_share_keys_and_no_states() -> None:
    """Reading on with a copy changes nothing of the original, whose keys it does not copy."""
    target = falcon()
    state = target.prefill(prompts(TEXTS[:1]), 80)
    state.commit([[0]], [[5]], state.prefill_output.hidden)
    row = state.cache.rows[0]
    before = [part.clone() for part in replay._tensors(row.cache)]
    copied = replay.copy_of(row.cache)
    shared = {part.data_ptr() for part in replay._tensors(row.cache)}
    layer = copied.layers[0]
    assert layer.keys.data_ptr() in shared and layer.recurrent_states[0].data_ptr() not in shared
    target.forward(state, chain(state.roots, torch.tensor([[3, 4, 5]])))
    assert all(map(torch.equal, before, replay._tensors(row.cache)))
    assert state.cache.bytes == sum(part.nbytes for part in before)


@pytest.mark.slow
def test_rows_join_and_leave() -> None:
    """Rows that come later, and the one that stays, say what each says alone."""
    target, sampling = falcon(), SamplingOptions(0)
    alone = plain(target, 14, sampling, texts=TEXTS)
    batch = Batch(target, OracleDrafter([alone[0]], 61), sampling)
    batch.join(prompts(TEXTS[:1]), [0], Stop(14))
    batch.round()
    batch.drafter.answers = alone
    batch.join(prompts(TEXTS[1:]), [0, 0], Stop(14))
    batch.round()
    batch.drafter.answers = [alone[2], alone[0]]
    batch.keep([2, 0])
    while any(batch.running):
        batch.round()
    assert batch.state.tokens == [alone[2], alone[0]]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["exact", "rejection"])
@pytest.mark.parametrize("name", ["medusa", "hawk-path", "msd"])
def test_trained_drafters(name: str, rule: str) -> None:
    """Drafters that read features draft for it, trees that are drawn at random too; `exact` changes no token."""
    target, length = falcon(), 16
    guesser = built() if name == "msd" else drafter(name, target)
    sizes = []

    def watch(state, tree: DraftTree, gumbel_scores, accepted) -> None:
        sizes.append((tree.size, tree.height + 1))
        if rule == "rejection" and tree.size > 1:
            torch.testing.assert_close(tree.probs[:, 1:].sum(2), torch.ones_like(tree.probs[:, 1:, 0]))

    found = generate(target, prompts(TEXTS), 3, Stop(length), guesser, seeds=5, rule=rule, on_accept=watch)
    assert all(size == height for size, height in sizes) and max(sizes)[0] > 1
    assert rule == "rejection" or found.tokens == plain(target, length, texts=TEXTS)


@pytest.mark.slow
def test_what_passes_cost_is_measured() -> None:
    assert len(measure(falcon(), prompts(TEXTS), 8, repeats=1).seconds) > 2


def test_what_it_cannot_do_is_refused() -> None:
    """Trees, deterministic passes, and targets of the wrong kind."""
    target = falcon()
    state = target.prefill(prompts(TEXTS[:1]), 80)
    with pytest.raises(MmspecError, match=r"follows chains alone, and path \[0, 2\] is none"):
        state.commit([[0, 2]], [[1, 2]], state.prefill_output.hidden)
    with pytest.raises(MmspecError, match="FalconH1ForCausalLM has recurrent layers.*leave deterministic out"):
        target.deterministic = True
    with pytest.raises(MmspecError, match=r"hybrid, which the tree cache cannot hold: build its target by target_of\("):
        CausalTarget(target.model)


def test_the_probe_sees_states_that_are_forgotten(monkeypatch) -> None:
    """Without its name in the list, Jamba is refused with a figure."""
    monkeypatch.setattr("mmspec.targets.probe.UNSTEADY", {})
    with pytest.raises(MmspecError, match=r"its own logits for several tokens after others: they differ by \d\.\de"):
        target_of(build(*UNSTEADY["Jamba"][:2]))


def test_refused_before_weights_are_read(tmp_path: Path) -> None:
    """The configuration alone says it: there are no weights in this folder."""
    build(*UNSTEADY["Mamba"][:2]).config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("{", '{"architectures": ["MambaForCausalLM"],', 1))
    with pytest.raises(MmspecError, match=f"MambaForCausalLM {FORGETS}"):
        check_family(tmp_path)


@pytest.mark.parametrize("name", ["LFM2", pytest.param("Mamba 2", marks=pytest.mark.slow)])
def test_inside_generate_of_transformers(name: str) -> None:
    """Three rows with left padding say what `generate` says for each alone, drafted or not."""
    model, longest = text_family(name), max(map(len, TEXTS))
    ids = torch.tensor([[0] * (longest - len(text)) + text for text in TEXTS])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in TEXTS])
    options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    alone = [model.generate(torch.tensor([text]), **options)[0, len(text) :] for text in TEXTS]
    for guesser in ("none", "lookup"):
        found = model.generate(ids, attention_mask=mask, custom_generate=mmspec.speculate(guesser), **options)
        assert torch.equal(found[:, longest:], torch.stack(alone))
