"""LANTERN's drafters for LlamaGen, Anole and Lumina-mGPT: trees against a forward pass written from the description,
with and without guidance; tokens against plain decoding.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import llama, prompts, text_target
from tiny_chameleon import BOI, BOS, BREAK, PROMPTS, ROW_END, SIZES, TURN, chameleon, lumina
from tiny_layouts import (
    HEADS,
    KV,
    LAYER_CONFIG,
    D,
    V,
    check_children,
    check_equal,
    check_joining,
    check_refusals,
    draw,
    feed,
    heads_of,
    layer_shapes,
    rms,
    rotate,
    write,
)
from tiny_llamagen import CAPTION, LENGTH, save_llamagen
from tiny_released import eagle_weights
from torch import Tensor
from torch.nn import functional as F

from mmspec import cli
from mmspec.drafters.registry import by_name
from mmspec.engine.loop import Stop, generate
from mmspec.errors import MmspecError
from mmspec.pipelines.llamagen_files import load_model
from mmspec.targets.base import Prompts
from mmspec.targets.chameleon import ChameleonTarget, LuminaTarget
from mmspec.targets.llamagen import CaptionPrompts, LlamaGenTarget

HEAD, IDS, SIDE = D // HEADS, 130, 16
LLAMAGEN = LAYER_CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": V}
LLAMAGEN |= {"caption_dim": CAPTION, "input_type": "t2i", "class_dropout_p": 0.0}
CHAMELEON = LAYER_CONFIG | {"architectures": ["ChameleonForConditionalGeneration"], "model_type": "chameleon"}
CHAMELEON |= {"vocab_size": IDS, "swin_norm": False, "model_parallel_size": 1, "vq_config": {"n_embed": 20}}
LENGTHS = [5, LENGTH, 1]


def chameleon_weights(groups: int = 0) -> dict[str, Tensor]:
    """Norms of queries and keys differ by head, or by group of heads."""
    layer = "layers.0."
    shapes: dict = {"embed_tokens.weight": (IDS, D), "fc.weight": (D, 2 * D), "fc.bias": (D,)} | layer_shapes(layer)
    shapes[f"{layer}input_layernorm.weight"] = (D,)
    for part, count in (("q", HEADS), ("k", KV)):
        shapes |= {f"{layer}self_attn.{part}_norm.{kind}": (groups or count, HEAD) for kind in ("weight", "bias")}
    return draw(shapes)


@cache
def captions() -> list[Tensor]:
    """Vectors of captions of different length."""
    rng = torch.Generator().manual_seed(3)
    return [torch.randn(length, CAPTION, generator=rng, dtype=torch.float64) for length in LENGTHS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LlamaGen's folder of released files; it says that a picture has 16x16 codes."""
    folder = save_llamagen(tmp_path_factory.mktemp("models") / "t2i", "t2i")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"side": SIDE}))
    return folder


@pytest.fixture(scope="module")
def llamagen(model: Path) -> LlamaGenTarget:
    return LlamaGenTarget(load_model(model, None, 4, torch.float64))


def captioned(guidance: float) -> CaptionPrompts:
    ids = [[7] * length for length in LENGTHS]
    return CaptionPrompts(ids, ids if guidance != 1 else None, guidance, captions=captions())


def drawn(guidance: float) -> Prompts:
    return Prompts(PROMPTS, [[BOS, BOI]] * 3 if guidance != 1 else None, guidance)


def attend(q: Tensor, k: Tensor, v: Tensor, w: dict[str, Tensor]) -> Tensor:
    """Causal attention of `head position dim`, and what is made of it."""
    k, v = (part.repeat_interleave(HEADS // KV, 0) for part in (k, v))
    hidden = torch.ones(q.shape[1], q.shape[1]).triu(1).bool()
    scores = (q @ k.transpose(1, 2) / HEAD**0.5).masked_fill(hidden, -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
    return mixed @ w["layers.0.self_attn.o_proj.weight"].T


def raster_layer(w: dict[str, Tensor], x: Tensor, before: int) -> Tensor:
    """A layer without a first norm. Neighbouring numbers of queries and keys turn together, half of the pairs by the
    row of a code and half by its column; those of the `before` entries of the caption become 0.
    """
    place, pairs = torch.arange(len(x) - before), HEAD // 2
    speed = 10000.0 ** (-2 * torch.arange(pairs // 2) / pairs)
    angles = torch.cat([(place // SIDE)[:, None] * speed, (place % SIDE)[:, None] * speed], 1)
    turn = F.pad(torch.polar(torch.ones_like(angles), angles), (0, 0, before, 0))
    q, k, v = (heads_of(w, f"layers.0.self_attn.{part}_proj", x, HEAD) for part in "qkv")
    q, k = (
        torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
        for part in (q, k)
    )
    return feed(w, "layers.0.", x + attend(q, k, v, w))


def chameleon_layer(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """A layer whose queries and keys are normed before they turn, each head by a weight and a bias of its own."""
    y = rms(x, w["layers.0.input_layernorm.weight"])
    q, k, v = (heads_of(w, f"layers.0.self_attn.{part}_proj", y, HEAD) for part in "qkv")
    normed = []
    for part, heads in (("q", q), ("k", k)):
        weight, bias = (w[f"layers.0.self_attn.{part}_norm.{kind}"] for kind in ("weight", "bias"))
        weight, bias = (value.repeat_interleave(len(heads) // len(value), 0)[:, None] for value in (weight, bias))
        scaled = (heads - heads.mean(-1, keepdim=True)) / (heads.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        normed.append(rotate(scaled * weight + bias, torch.arange(len(x))))
    return feed(w, "layers.0.", x + attend(*normed, v, w))


def unroll(w: dict[str, Tensor], tokens: list[int], features: Tensor, path: list[int], layer) -> Tensor:
    """The feature that is predicted after entries of tokens and features, and a path of draft ids."""
    w, ids = {name: value.double() for name, value in w.items()}, torch.tensor(tokens)
    for token in [*path, None]:
        entries = torch.cat([w["embed_tokens.weight"][ids], features], -1) @ w["fc.weight"].T + w["fc.bias"]
        predicted = layer(w, entries)[-1]
        if token is not None:
            ids, features = torch.cat([ids, torch.tensor([token])]), torch.cat([features, predicted[None]])
    return predicted


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_llamagen(tmp_path: Path, llamagen: LlamaGenTarget, guidance: float) -> None:
    """The caption enters as features and code 0, and so does its padding: features of 0 before a caption, those of the
    first vectors of no caption before none.
    """
    model, weights, given = llamagen.model, eagle_weights(True, False), captioned(guidance)
    folder = write(tmp_path / "d", LLAMAGEN, weights, "pytorch_model.bin")

    def states(vectors: Tensor, codes: list[int]) -> Tensor:
        vectors = torch.cat([vectors, model.get_input_embeddings()(torch.tensor(codes, dtype=torch.long))])
        positions = torch.arange(len(vectors)) - len(vectors) + len(codes)
        return model.model(inputs_embeds=vectors[None], position_ids=positions[None], use_cache=False)[0][0]

    def logits(branch: int, row: int, codes: list[int], path: list[int]) -> Tensor:
        length = LENGTHS[row]
        if branch:
            padding = states(model.caption_vectors(LENGTH)[: LENGTH - length], []) if length < LENGTH else None
            vectors = model.caption_vectors(length)
        else:
            padding, vectors = torch.zeros(LENGTH - length, D).double(), model.caption_vectors(captions()[row])
        features = states(vectors, codes)[:-1]
        features = features if padding is None else torch.cat([padding, features])
        tokens = [0] * (LENGTH - 1) + codes

        def layer(w: dict[str, Tensor], x: Tensor) -> Tensor:
            return raster_layer(w, x, LENGTH - 1)

        return model.lm_head.weight @ unroll(weights, tokens, features, path, layer)

    check_children(llamagen, folder, given, logits)
    check_equal(llamagen, folder, given)


@pytest.mark.parametrize("groups", [0, 1])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_anole(tmp_path: Path, guidance: float, groups: int) -> None:
    """The layer has its first norm and norms of queries and keys: one for each head, or for all of them."""
    target, weights, given = ChameleonTarget(chameleon()), chameleon_weights(groups), drawn(guidance)
    folder = write(tmp_path / "d", CHAMELEON | {"bias": True}, weights)

    def logits(branch: int, row: int, codes: list[int], path: list[int]) -> Tensor:
        ids = given.branches[3 * branch + row] + target.vocabulary[codes].tolist()
        features = target.model.model(torch.tensor([ids[:-1]]), use_cache=False).last_hidden_state[0]
        feature = unroll(weights, ids[1:], features, target.vocabulary[path].tolist(), chameleon_layer)
        return target.model.lm_head.weight[target.vocabulary] @ feature

    check_children(target, folder, given, logits)
    check_equal(target, folder, given)


def test_lumina(tmp_path: Path) -> None:
    """equality: pictures whose rows end with a token of their own, which is drafted where it comes (fp64)."""
    target, begin = LuminaTarget(lumina(), 6, 2), [BREAK, SIZES[2], SIZES[0]]
    folder = write(tmp_path / "d", CHAMELEON, chameleon_weights())
    rows = [[*row[:-2], TURN, *begin] for row in PROMPTS]
    check_equal(target, folder, Prompts(rows, [begin] * 3, 3.0))
    drafter, ends = by_name(str(folder), None, target), set()
    draft = drafter.draft

    def check(state, noise, limit):
        tree = draft(state, noise, limit)
        if tree.height:
            places = state.counts[0] + tree.depths[0, 1:] - 1
            drafted = (places % 3 == 2) & (tree.path_probs[0, 1:] > 0)
            ends.update(target.vocabulary[tree.tokens[0, 1:]][drafted].tolist())
        return tree

    drafter.draft = check
    generate(target, Prompts(rows[:1], [begin], 3.0), 1, Stop(18), drafter)
    assert ends == {ROW_END}


@pytest.mark.parametrize("kind", ["llamagen", "anole"])
def test_rows_that_join_and_leave(tmp_path: Path, llamagen: LlamaGenTarget, kind: str) -> None:
    """With guidance."""
    if kind == "llamagen":
        check_joining(llamagen, write(tmp_path / "d", LLAMAGEN, eagle_weights(True, False)), given=captioned(3.0))
    else:
        folder = write(tmp_path / "d", CHAMELEON, chameleon_weights())
        check_joining(ChameleonTarget(chameleon()), folder, given=drawn(3.0))


@pytest.mark.parametrize("kind", ["llamagen", "anole"])
def test_saved_anew(tmp_path: Path, llamagen: LlamaGenTarget, kind: str) -> None:
    """round trip: what was read and saved drafts the same."""
    raster = kind == "llamagen"
    target, given = (llamagen, captioned(3.0)) if raster else (ChameleonTarget(chameleon()), drawn(3.0))
    weights = eagle_weights(True, False) if raster else chameleon_weights(1)
    read = by_name(str(write(tmp_path / "d", LLAMAGEN if raster else CHAMELEON, weights)), None, target)
    read.save_pretrained(tmp_path / "again")
    again = by_name(str(tmp_path / "again"), None, target)
    first, second = (generate(target, given, 3, Stop(12), drafter) for drafter in (read, again))
    assert first.tokens == second.tokens and first.stats.runs == second.stats.runs
    if raster:
        with pytest.raises(MmspecError, match="is for a LlamaGen that draws captions on 16x16 codes"):
            generate(text_target(), prompts(), 3, Stop(2), again)


def test_what_does_not_fit_is_named(tmp_path: Path, llamagen: LlamaGenTarget) -> None:
    """Tensors that are missing, foreign or of another shape."""
    check_refusals(llamagen, tmp_path / "l", LLAMAGEN, eagle_weights(True, False), "fc.weight", flags=False)
    check_refusals(llamagen, tmp_path / "q", LLAMAGEN, eagle_weights(True, False), "fc.bias", flags=False)
    norms = ("layers.0.input_layernorm.weight", "layers.0.self_attn.q_norm.bias")
    for name in norms:
        target = ChameleonTarget(chameleon())
        check_refusals(target, tmp_path / name, CHAMELEON, chameleon_weights(), name, flags=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_type": "c2i"}, "its input_type is 'c2i', and LlamaGen's t2i and t2i2 are read"),
        ({"input_type": "t2i2"}, r"it drafts 32x32 codes \(input_type t2i2\), the model draws 16x16"),
        ({"caption_dim": 2048}, "its caption_dim is 2048, vectors of the model's captions have 16 numbers"),
        ({"caption_dim": None}, "config.json lacks caption_dim"),
        ({"vocab_size": 16384}, "its vocab_size is 16384, the model's 40"),
        ({"vocab_size": None}, "config.json lacks vocab_size"),
        ({"hidden_size": 64}, "its hidden_size is 64, this target's hidden_size is 32"),
        ({"hidden_act": "gelu"}, "layers with 'gelu' are not understood"),
    ],
)
def test_traps_are_named(tmp_path: Path, llamagen: LlamaGenTarget, change: dict, message: str) -> None:
    folder = write(tmp_path / "d", LLAMAGEN | change, eagle_weights(True, False))
    with pytest.raises(MmspecError, match=message):
        by_name(str(folder), None, llamagen)


def test_of_another_target(tmp_path: Path, llamagen: LlamaGenTarget) -> None:
    """Of another family, or of a LlamaGen that draws classes."""
    raster = write(tmp_path / "l", LLAMAGEN, eagle_weights(True, False))
    blended = write(tmp_path / "c", CHAMELEON, chameleon_weights())
    classes = load_model(save_llamagen(tmp_path / "c2i", "c2i"), SIDE, 4, torch.float64)
    for folder, target, message in (
        (raster, text_target(), r"it drafts for LlamaGen \(input_type t2i\), and the target is a llama"),
        (raster, LlamaGenTarget(classes), "it drafts for captions .* and the model draws classes"),
        (blended, llamagen, "it drafts for a Chameleon that draws, such as Anole, and the target is a llamagen"),
    ):
        with pytest.raises(MmspecError, match=message):
            by_name(str(folder), None, target)


def test_what_info_says(tmp_path: Path, model: Path, llamagen: LlamaGenTarget, capsys) -> None:
    """`mmspec info FOLDER --target MODEL`, of released files and of what transformers saves."""
    folder = write(tmp_path / "d", LLAMAGEN, eagle_weights(True, False))
    other = write(tmp_path / "o", LLAMAGEN | {"input_type": "t2i2"}, eagle_weights(True, False))
    blended = write(tmp_path / "c", CHAMELEON, chameleon_weights())
    llamagen.model.save_pretrained(tmp_path / "saved")
    chameleon().save_pretrained(tmp_path / "chameleon")
    llama().save_pretrained(tmp_path / "llama")
    for drafter, target, why in (
        (folder, model, ""),
        (folder, tmp_path / "saved", ""),
        (other, model, "it drafts 32x32 codes (input_type t2i2), the model draws 16x16"),
        (blended, tmp_path / "chameleon", ""),
        (blended, tmp_path / "llama", "it drafts for a Chameleon that draws, such as Anole, and the target is a llama"),
    ):
        with pytest.raises(SystemExit) as done:
            cli.main(["info", str(drafter), "--target", str(target), "--json"])
        facts = json.loads(capsys.readouterr().out)
        assert not done.value.code and facts["layout"] == "LANTERN" and facts["why"] == why
        assert facts["fits"] == (not why) and facts["hidden_size"] == D
