"""DFlash in the spellings of its authors and of speculators, and DSpark with each Markov head: trees against a forward
pass written from the description, tokens against plain decoding.
"""

from pathlib import Path

import pytest
import torch
import vlm_families
from tiny import prompts, text_target
from tiny_layouts import (
    D,
    V,
    attend,
    check_equal,
    check_joining,
    check_refusals,
    check_trees,
    draw,
    feed,
    rms,
    write,
)
from tiny_qwen import qwen_target
from tiny_released import BLOCK, LAYERS, MARKOV, MASK, QWEN3, RANK, SPECULATORS_DFLASH, ZLAB, dflash_weights
from tiny_vlm import asked, model

from mmspec.drafters.blocks import Blocks
from mmspec.drafters.dflash import DFlashDrafter
from mmspec.drafters.dspark import DSparkDrafter
from mmspec.drafters.registry import by_name
from mmspec.engine.loop import Stop, generate
from mmspec.errors import MmspecError
from mmspec.targets.registry import target_of
from mmspec.targets.vision_language import VisionLanguageTarget, VisualPrompts
from mmspec.train.capture import Reading, read_features


def dflash(target, numbers, anchored: bool = False, markov: str = ""):
    """The block sees itself and the context, keys and values of which are each layer's projections of one state."""

    def bias(w, tokens, x, first):
        """Of the Markov head after these tokens, one a slot from `first` on."""
        state = torch.zeros(RANK).double()
        slots = list(range(first, first + len(tokens)))
        for token, slot in zip([*([tokens[0]] if first else []), *tokens], [*([0] if first else []), *slots]):
            e = w["markov_head.markov_w1.weight"][token]
            if markov == "gated":
                gate = w["markov_head.gate_proj.weight"] @ torch.cat([x[slot], e]) + w["markov_head.gate_proj.bias"]
                e = gate.sigmoid() * e
            if markov == "rnn":
                joint = torch.cat([state, e, x[slot]])
                z, c, o = (w["markov_head.joint_proj.weight"] @ joint + w["markov_head.joint_proj.bias"]).chunk(3)
                state, e = z.sigmoid() * state + (1 - z.sigmoid()) * c.tanh(), o.tanh()
        return w["markov_head.markov_w2.weight"] @ e

    def reference(w, ids, hidden, path):
        table = w.get("embed_tokens.weight", target.model.get_input_embeddings().weight)
        context = rms(torch.cat([hidden[n] for n in numbers], -1) @ w["fc.weight"].T, w["hidden_norm.weight"])
        x = table[[ids[-1], *[MASK] * (BLOCK - 1)]]
        positions, seen = torch.arange(len(ids) - 1 + BLOCK), torch.ones(BLOCK, len(ids) - 1 + BLOCK).bool()
        for name in (f"layers.{n}." for n in range(LAYERS)):
            normed = rms(x, w[f"{name}input_layernorm.weight"])
            x = feed(w, name, x + attend(w, name, normed, positions, seen, context))
        x = rms(x, w["norm.weight"])
        slot = len(path) + (0 if anchored else 1)
        logits = w.get("lm_head.weight", target.head.weight) @ x[slot]
        if markov:
            logits = logits + bias(w, [ids[-1], *path], x, 0 if anchored else 1)
        drafted = torch.arange(len(logits)) + w.get("d2t", torch.zeros(len(logits), dtype=torch.long))
        return torch.full((V,), -torch.inf, dtype=logits.dtype).index_put((drafted,), logits)

    return reference


def test_of_its_authors(tmp_path: Path) -> None:
    """Embedding and head are the target's; layer ids count what leaves: 0 and 1 are hidden states 1 and 2."""
    target, weights = text_target(), dflash_weights()
    folder = write(tmp_path / "d", ZLAB, weights)
    check_trees(target, folder, weights, dflash(target, (1, 2)))
    check_equal(target, folder)


# What the files for Qwen3.5 say besides.
FOR_QWEN35 = {
    "num_target_layers": 4,
    "dflash_config": {"target_layer_ids": [0, 2], "mask_token_id": MASK},
    "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
    "attention_bias": False,
    "attention_dropout": 0.0,
    "max_window_layers": LAYERS,
    "rope_scaling": None,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}


def test_on_a_recurrent_target(tmp_path: Path) -> None:
    """As published for Qwen3.5: what leaves layers is read row by row, and drafts become chains."""
    target, weights = qwen_target("Qwen3_5"), dflash_weights()
    folder = write(tmp_path / "d", ZLAB | FOR_QWEN35, weights)
    check_trees(target, folder, weights, dflash(target, (1, 3)))
    check_equal(target, folder)
    check_joining(target, folder)


@pytest.mark.slow
@pytest.mark.parametrize("anchored", [False, True])
def test_speculators(tmp_path: Path, anchored: bool) -> None:
    """Layer ids count what enters; a small vocabulary; slots predict their own token, or the one after it."""
    target, weights = text_target(), dflash_weights(12)
    folder = write(tmp_path / "d", SPECULATORS_DFLASH | {"sample_from_anchor": anchored}, weights)
    check_trees(target, folder, weights, dflash(target, (0, 1), anchored))
    check_equal(target, folder)


@pytest.mark.slow
@pytest.mark.parametrize(("markov", "anchored"), [("vanilla", True), ("gated", True), ("rnn", True), ("rnn", False)])
def test_dspark(tmp_path: Path, markov: str, anchored: bool) -> None:
    """The bias of each Markov head follows the path; the head of confidence is passed over."""
    target, weights = text_target(), dflash_weights(12, markov)
    config = SPECULATORS_DFLASH | MARKOV | {"speculators_model_type": "dspark", "markov_head_type": markov}
    folder = write(tmp_path / "d", config | {"sample_from_anchor": anchored}, weights)
    check_trees(target, folder, weights, dflash(target, (0, 1), anchored, markov))
    check_equal(target, folder, reads=4 * (markov == "vanilla"))  # its lattice is searched on the host


def test_dspark_of_rows_that_join_and_leave(tmp_path: Path) -> None:
    config = SPECULATORS_DFLASH | MARKOV | {"speculators_model_type": "dspark", "markov_head_type": "rnn"}
    check_joining(text_target(), write(tmp_path / "d", config, dflash_weights(12, "rnn")))


def test_what_does_not_fit_dspark_is_named(tmp_path: Path) -> None:
    config = SPECULATORS_DFLASH | MARKOV | {"speculators_model_type": "dspark"}
    weights = dflash_weights(12, "vanilla")
    check_refusals(text_target(), tmp_path / "d", config, weights, "markov_head.markov_w2.weight")
    with pytest.raises(MmspecError, match="markov_head_type 'lstm' is not known: vanilla, gated and rnn are"):
        by_name(str(write(tmp_path / "d", config | {"markov_head_type": "lstm"}, weights)), None, text_target())


@pytest.mark.slow
def test_deepspec(tmp_path: Path) -> None:
    """A flat configuration, the whole vocabulary, ids that count what leaves (-1 is the embedding), old names."""
    target, weights = text_target(), dflash_weights(V, "vanilla")
    config = QWEN3 | MARKOV | {"architectures": ["Qwen3DSparkModel"], "markov_head_type": "vanilla", "num_anchors": 9}
    config |= {"block_size": BLOCK, "mask_token_id": MASK, "target_layer_ids": [-1, 0]}
    old = {f"logit_head.{name}" if name.startswith(("markov", "conf")) else name: v for name, v in weights.items()}
    folder = write(tmp_path / "d", config, old)
    check_trees(target, folder, weights, dflash(target, (0, 1), True, "vanilla"))
    check_equal(target, folder, reads=4)


@pytest.mark.slow
def test_pictures(tmp_path: Path) -> None:
    """They reach the block by the target's states alone."""
    target = VisionLanguageTarget(model("qwen2_5_vl"))
    given = VisualPrompts.of([asked("qwen2_5_vl", [(32, 32)], 1), asked("qwen2_5_vl", [], 2)])
    check_equal(target, write(tmp_path / "d", ZLAB, dflash_weights()), given)


@pytest.mark.slow
def test_pictures_of_a_recurrent_target(tmp_path: Path) -> None:
    """Qwen3.5 as it is published reads pictures."""
    target = target_of(vlm_families.model("qwen3_5"))
    given = VisualPrompts.of([vlm_families.asked("qwen3_5", sizes, 1) for sizes in ([(2, 3)], [], [(1, 2), (3, 2)])])
    check_equal(target, write(tmp_path / "d", ZLAB, dflash_weights()), given)


def test_rows_that_join_and_leave(tmp_path: Path) -> None:
    check_joining(text_target(), write(tmp_path / "d", ZLAB, dflash_weights()))


DOMINO = {
    "projector_type": "domino",
    "emb_dim": 8,
    "gru_hidden_dim": 8,
    "pure_draft_prefix_len": 1,
    "shift_label": True,
}
DFLASH2 = {
    "conv_kernel_size": 2,
    "conv_group_size": 16,
    "selector_rank": 4,
    "selector_top_k": 4,
    "input_embedding_scale": 1.0,
    "output_multiplier": 1.0,
    "final_logit_softcapping": None,
}
SELECTOR = {"candidate_selector.predecessor_codebook": (V, 4), "candidate_selector.hidden_projection.weight": (4, D)}


@pytest.mark.parametrize(
    ("top", "own", "more", "message"),
    [
        ({}, DOMINO, {"prefix_gru.weight_ih_l0": (24, D)}, "drafters of the kind Domino are not read"),
        ({}, DOMINO, {}, "projector_type 'domino' is not read: DFlash and DSpark are"),
        ({"projector_type": "domino"}, {}, {}, "projector_type 'domino' is not read: DFlash and DSpark are"),
        ({"architectures": ["DFlash2DraftModel"]}, DFLASH2, SELECTOR, "drafters of the kind DFlash2 are not read"),
        ({}, DFLASH2, SELECTOR, "config.json sets conv_group_size, conv_kernel_size, input_embedding_scale, "),
        ({}, {}, SELECTOR, "the file has unexpected candidate_selector.hidden_projection.weight, candidate_selector"),
    ],
)
def test_domino_and_dflash2_are_refused_by_name(tmp_path: Path, top: dict, own: dict, more: dict, message: str) -> None:
    """As they are published, and files that hide what they are: nothing of them is taken for DFlash."""
    config = ZLAB | top | {"dflash_config": ZLAB["dflash_config"] | own}
    folder = write(tmp_path / "d", config, dflash_weights() | draw(more))
    with pytest.raises(MmspecError, match=message):
        by_name(str(folder), None, text_target())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, w: c.update({"aux_hidden_state_layer_ids": [1, 2]}), "count layers differently, by one"),
        (lambda c, w: c["dflash_config"].pop("target_layer_ids"), "names no layers"),
        (lambda c, w: c["dflash_config"].update({"target_layer_ids": [1, 2]}), r"reads hidden states \[2, 3\]"),
        (lambda c, w: c["dflash_config"].update({"attention_mode": "mla"}), "sets attention_mode, which mmspec"),
        (lambda c, w: c["dflash_config"].update({"mask_token_id": 40}), "mask_token_id is 40, and there are vectors"),
        (lambda c, w: c.update({"layer_types": ["sliding_attention"] * 2}), "of the kind sliding_attention"),
        (lambda c, w: c.update({"projector_type": "domino"}), "projector_type 'domino' is not read"),
        (lambda c, w: c.update({"shift_label": True}), "sets shift_label, which mmspec does not know"),
        (lambda c, w: w.update({"prefix_gru.weight_ih_l0": torch.ones(1)}), "of the kind Domino are not read"),
        (lambda c, w: w.update({"layers.0.k_proj_target": torch.ones(1)}), "of the kind DFlare are not read"),
        (lambda c, w: w.update({"fc.weight": torch.ones(D, D)}), r"fc.weight is \[32, 32\] and should be \[32, 64\]"),
    ],
)
def test_traps_are_named(tmp_path: Path, change, message: str) -> None:
    config, weights = ZLAB | {"dflash_config": dict(ZLAB["dflash_config"])}, dflash_weights()
    change(config, weights)
    with pytest.raises(MmspecError, match=message):
        by_name(str(write(tmp_path / "d", config, weights)), None, text_target())


@pytest.mark.parametrize("kind", [DFlashDrafter, DSparkDrafter])
@pytest.mark.parametrize("anchored", [True, False])
def test_what_is_trained_is_what_drafts(kind: type[DFlashDrafter], anchored: bool) -> None:
    """Blocks of a sequence, read at once from captured features, are those that are drafted from along it; and the
    predictions of a depth are about the tokens at that distance from the last committed one.
    """
    target = text_target()
    torch.manual_seed(0)
    drafter = kind.build(target, block=4, layers=2, from_anchor=anchored).double().eval()
    for weight in drafter.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    drafted, block = {}, drafter.block

    def watch(state):
        hidden = block(state)
        drafted[state.counts[0] - 1] = hidden[0]
        return hidden

    drafter.block = watch
    given = prompts([[1, 3, 4, 2]])
    tokens = torch.tensor(generate(target, given, 1, Stop(20), drafter, seeds=3).tokens[0])
    del drafter.block
    [example] = read_features(target, given, [tokens], [3], reading=Reading.of(kind, target))
    places = torch.tensor([list(drafted)])
    blocks = Blocks.of(target, [example], places, drafter.depth)
    with torch.no_grad():
        hidden = drafter.read_blocks(target, blocks)
        predictions = drafter.predictions(target, example)
        logits = drafter.path_logits(target, blocks, hidden)[0].log_softmax(-1)
    assert len(drafted) > 4
    torch.testing.assert_close(hidden[0], torch.stack(list(drafted.values())))
    for depth, found in enumerate(predictions):
        assert found.positions.tolist() == list(range(depth + 1, len(tokens)))
        inside = [place for place in places[0].tolist() if place + depth + 1 < len(tokens)]
        torch.testing.assert_close(found.log_q[inside], logits[: len(inside), depth])


def test_training_lowers_the_loss() -> None:
    """A block drafter learns a sequence by heart, table and all, and padding of others changes nothing."""
    target = text_target()
    torch.manual_seed(0)
    drafter = DSparkDrafter.build(target, block=3, rank=4).double().train()
    given = prompts([[1, 3, 4, 2], [1, 5, 2]])
    tokens = [torch.tensor(row) for row in generate(target, given, 2, Stop(12), seeds=3).tokens]
    tokens[1] = tokens[1][:7]
    examples = read_features(target, given, tokens, [-1, -1], reading=Reading.of(DSparkDrafter, target))
    alone, both = drafter.loss(target, examples[1:]), drafter.loss(target, [examples[1], examples[1]])
    torch.testing.assert_close(alone, both)
    optimizer = torch.optim.Adam(drafter.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = drafter.loss(target, examples, tv=0.5)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert drafter.markov_head.markov_w2.weight.isfinite().all()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_answers_shorter_than_a_block(length: int) -> None:
    """Depths that no token of the answer has predict nothing."""
    target = text_target()
    drafter = DSparkDrafter.build(target, block=4, rank=4).double()
    [example] = read_features(
        target, prompts([[1, 3, 2]]), [torch.arange(1, 1 + length)], [-1], reading=Reading.of(DSparkDrafter, target)
    )
    with torch.no_grad():
        found = drafter.eval().predictions(target, example)
    assert [len(each.positions) for each in found] == [max(0, length - 1 - depth) for depth in range(4)]
    assert all(len(each.log_q) == len(each.positions) for each in found)
    assert drafter.train().loss(target, [example, example])["loss"].isfinite()
