"""Qwen3-Next's and Qwen3.5's native MTP: chains against a forward pass written from the description, tokens against
plain decoding, from the model's own folder and from one of its own.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import vlm_families
from safetensors.torch import load_file, save_file
from tiny import prompts, text_target
from tiny_layouts import HEADS, INNER, KV, D, check_equal, check_joining, check_trees, draw, rms, rotate, write
from tiny_qwen import AXES, qwen_target, reading_target
from tiny_text import save_tokenizer
from torch import Tensor
from torch.nn import functional as F

from mmspec import cli
from mmspec.drafters.registry import by_name, usable
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.serve.batcher import fresh
from mmspec.targets.causal import CausalTarget
from mmspec.targets.vision_language import VisualPrompts

HEAD, EXPERTS, CHOSEN, SMALL = 8, 4, 2, 16
KINDS = (
    "Qwen3_5",
    pytest.param("Qwen3_5Moe", marks=pytest.mark.slow),
    pytest.param("Qwen3Next", marks=pytest.mark.slow),
)


def mtp_weights(experts: str = "", **extra) -> dict[str, Tensor]:
    """Tensors of the published names; experts are stacked or single."""
    layer = "mtp.layers.0."
    shapes: dict = {"mtp.fc.weight": (D, 2 * D), "mtp.norm.weight": (D,)}
    shapes |= {f"mtp.pre_fc_norm_{part}.weight": (D,) for part in ("embedding", "hidden")}
    shapes |= {f"{layer}{part}_layernorm.weight": (D,) for part in ("input", "post_attention")}
    heads = {"q": 2 * HEADS, "k": KV, "v": KV}
    shapes |= {f"{layer}self_attn.{part}_proj.weight": (count * HEAD, D) for part, count in heads.items()}
    shapes |= {f"{layer}self_attn.{part}_norm.weight": (HEAD,) for part in "qk"}
    shapes |= {f"{layer}self_attn.o_proj.weight": (D, HEADS * HEAD)}
    blocks = {"mlp.": INNER} if not experts else {"mlp.shared_expert.": SMALL}
    if experts == "single":
        blocks |= {f"mlp.experts.{number}.": SMALL for number in range(EXPERTS)}
    if experts == "stacked":
        shapes[f"{layer}mlp.experts.gate_up_proj"] = (EXPERTS, 2 * SMALL, D)
        shapes[f"{layer}mlp.experts.down_proj"] = (EXPERTS, D, SMALL)
    if experts:
        shapes |= {f"{layer}mlp.gate.weight": (EXPERTS, D), f"{layer}mlp.shared_expert_gate.weight": (1, D)}
    for block, inner in blocks.items():
        shapes |= {f"{layer}{block}{part}_proj.weight": (inner, D) for part in ("gate", "up")}
        shapes |= {f"{layer}{block}down_proj.weight": (D, inner)}
    return draw(shapes | extra)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm whose weight is the difference from one."""
    return rms(x, 1 + weight, 1e-6)


def gated(w: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    gate, up, down = (w[f"{prefix}{part}_proj.weight"] for part in ("gate", "up", "down"))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def mixture(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The most probable experts, weighed anew, and one that all share behind a gate."""
    layer, rows = "mtp.layers.0.mlp.", []
    for vector in x:
        share, chosen = (w[f"{layer}gate.weight"] @ vector).softmax(0).topk(CHOSEN)
        out = torch.sigmoid(w[f"{layer}shared_expert_gate.weight"] @ vector) * gated(
            w, f"{layer}shared_expert.", vector
        )
        for part, number in zip(share / share.sum(), chosen.tolist()):
            out = out + part * gated(w, f"{layer}experts.{number}.", vector)
        rows.append(out)
    return torch.stack(rows)


def attention(w: dict[str, Tensor], x: Tensor, positions: Tensor, turned: int) -> Tensor:
    """Queries come with gates, head by head; norms before positions, which turn the first numbers of each head."""
    a = "mtp.layers.0.self_attn."
    queries, gate = (x @ w[f"{a}q_proj.weight"].T).view(len(x), HEADS, 2 * HEAD).chunk(2, -1)
    keys, values = ((x @ w[f"{a}{part}_proj.weight"].T).view(len(x), KV, HEAD) for part in "kv")
    q, k = (norm(part, w[f"{a}{name}_norm.weight"]).transpose(0, 1) for name, part in (("q", queries), ("k", keys)))
    q, k = (torch.cat([rotate(part[..., :turned], positions), part[..., turned:]], -1) for part in (q, k))
    k, v = (part.repeat_interleave(HEADS // KV, 0) for part in (k, values.transpose(0, 1)))
    scores = (q @ k.transpose(1, 2) / HEAD**0.5).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)
    return (mixed * torch.sigmoid(gate.reshape(len(x), -1))) @ w[f"{a}o_proj.weight"].T


def fuse(w: dict[str, Tensor], vectors: Tensor, hidden: Tensor) -> Tensor:
    parts = (norm(vectors, w["mtp.pre_fc_norm_embedding.weight"]), norm(hidden, w["mtp.pre_fc_norm_hidden.weight"]))
    return torch.cat(parts, -1) @ w["mtp.fc.weight"].T


def read(w: dict[str, Tensor], x: Tensor, positions: Tensor, turned: int = HEAD // 2) -> Tensor:
    """Hidden states of entries."""
    x = x + attention(w, norm(x, w["mtp.layers.0.input_layernorm.weight"]), positions, turned)
    after = norm(x, w["mtp.layers.0.post_attention_layernorm.weight"])
    x = x + (mixture(w, after) if "mtp.layers.0.mlp.gate.weight" in w else gated(w, "mtp.layers.0.mlp.", after))
    return norm(x, w["mtp.norm.weight"])


def reference(target: CausalTarget) -> Callable:
    """Token t + 1 and the target's state at t, then drafted tokens and what was predicted; the target's head."""

    def logits(w, ids, hidden, path):
        table = target.model.get_input_embeddings().weight
        entries = fuse(w, table[ids[1:]], hidden[-1])
        for token in [*path, None]:
            states = read(w, entries, torch.arange(len(entries)))
            if token is not None:
                entries = torch.cat([entries, fuse(w, table[token], states[-1])[None]])
        return target.head.weight @ states[-1]

    return logits


def config_of(target: CausalTarget, **changes) -> dict:
    return target.model.config.to_dict() | {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False} | changes


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_these_tensors(tmp_path: Path, kind: str) -> None:
    """Dense layers, and those of single experts."""
    target, weights = qwen_target(kind), mtp_weights("" if kind == "Qwen3_5" else "single")
    folder = write(tmp_path / "d", config_of(target), weights)
    check_trees(target, folder, weights, reference(target))
    check_equal(target, folder, reads=0 if kind == "Qwen3_5" else 1000)  # its experts are asked which rows they have


def test_guidance(tmp_path: Path) -> None:
    """States and a cache for each CFG branch of a recurrent target: chains, tokens, and rows that come and go."""
    target, weights = qwen_target("Qwen3_5"), mtp_weights()
    folder, given = write(tmp_path / "d", config_of(target), weights), prompts(guidance=2.5)
    check_trees(target, folder, weights, reference(target), 2.5)
    check_equal(target, folder, given)
    check_joining(target, folder, given=given)


def test_stacked_experts(tmp_path: Path) -> None:
    """gate_up_proj and down_proj of all experts are those of single ones."""
    target, single = qwen_target("Qwen3_5Moe"), mtp_weights("single")
    stacked = {name: value for name, value in single.items() if ".experts." not in name}
    parts = (
        [single[f"mtp.layers.0.mlp.experts.{number}.{part}_proj.weight"] for number in range(EXPERTS)]
        for part in ("gate", "up", "down")
    )
    gate, up, down = map(torch.stack, parts)
    stacked["mtp.layers.0.mlp.experts.gate_up_proj"] = torch.cat([gate, up], 1)
    stacked["mtp.layers.0.mlp.experts.down_proj"] = down
    folder = write(tmp_path / "d", config_of(target), stacked)
    check_trees(target, folder, single, reference(target))


def save_model(folder: Path, target: CausalTarget, weights: dict[str, Tensor], shards: bool) -> Path:
    """A model's folder with its MTP: in one file, or in a second one that the index names."""
    target.model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mtp_num_hidden_layers": 1}))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if not shards:
        save_file(tensors | weights, file, metadata={"format": "pt"})
        return folder
    file.rename(folder / "model-00001-of-00002.safetensors")
    save_file(weights, folder / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    places = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    places |= dict.fromkeys(weights, "model-00002-of-00002.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("shards", [False, True])
def test_by_name_from_the_models_own_folder(tmp_path: Path, shards: bool) -> None:
    """`mtp` is usable where the tensors are, and so is the folder itself; files without them are not read."""
    target, weights = qwen_target("Qwen3_5"), mtp_weights()
    folder = save_model(tmp_path / "m", target, weights, shards)
    assert "mtp" in usable(folder) and "mtp" not in usable(None)
    if shards:
        (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    else:
        check_equal(target, folder, beside=folder, name="mtp")
    named, given = by_name("mtp", folder, target), by_name(str(folder), folder, target)
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in named.state_dict().items())


def test_pictures(tmp_path: Path) -> None:
    """Qwen3.5 reads pictures: their vectors, at the target's positions of three axes, interleaved."""
    target, weights = reading_target(), mtp_weights()
    given = VisualPrompts.of([vlm_families.asked("qwen3_5", sizes, 1) for sizes in ([(2, 3)], [], [(1, 2), (3, 2)])])
    folder = write(tmp_path / "d", target.model.config.to_dict(), weights)
    drafter = by_name(str(folder), None, target)
    w = {name: value.double() for name, value in weights.items()}
    state = target.prefill(given, 60, True)
    with torch.inference_mode():
        drafter.start(target, state, SamplingOptions(0), False)
        for row, (prompt, states) in enumerate(state.prompt_hidden):
            positions = prompt.position_ids.expand(3, -1)[AXES, :-1].T
            out = read(w, fuse(w, prompt.vectors[1:], states), positions, HEAD)
            torch.testing.assert_close(drafter._last[row], out[-1], rtol=1e-5, atol=1e-5)
    check_equal(target, folder, given)


def say(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as done:
        cli.main([*map(str, arguments)])
    captured = capsys.readouterr()
    assert not done.value.code, captured.err
    return captured.out


def test_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`info` knows it in a model's folder and alone; `ask --drafter mtp` says what plain decoding says."""
    target, weights = qwen_target("Qwen3_5"), mtp_weights()
    folder = save_model(tmp_path / "m", target, weights, False)
    assert save_tokenizer(folder) <= target.vocabulary_size
    alone = write(tmp_path / "d", config_of(target), weights)
    text_target().model.save_pretrained(tmp_path / "llama")
    model = json.loads(say(capsys, "info", folder, "--json"))
    assert model["task"] == "image-text-to-text" and "mtp" in model["drafters"]
    for drafter, origin in ((folder, "the model in its folder"), (alone, "not said")):
        facts = json.loads(say(capsys, "info", drafter, "--target", folder, "--json"))
        assert facts["layout"] == "MTP" and facts["fits"] and facts["for"] == origin and facts["hidden_size"] == D
    assert json.loads(say(capsys, "info", alone, "--json"))["layout"] == "MTP"
    facts = json.loads(say(capsys, "info", alone, "--target", tmp_path / "llama", "--json"))
    assert not facts["fits"] and "MTP is read for models of the kinds qwen3_next" in facts["why"]
    options = ["--model", folder, "--max-new-tokens", "12", "--dtype", "fp64", "--device", "cpu", "--json"]
    plain, drafted = (
        json.loads(say(capsys, "ask", "hi there", "--drafter", name, *options)) for name in ("none", "mtp")
    )
    assert plain["answer"] == drafted["answer"]


def test_rows_that_join_and_leave(tmp_path: Path) -> None:
    target = qwen_target("Qwen3_5")
    check_joining(target, write(tmp_path / "d", config_of(target), mtp_weights()))


LAYER = "mtp.layers.0."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, w: w.pop("mtp.fc.weight"), "the file lacks mtp.fc.weight: it is no MTP drafter"),
        (lambda c, w: w.update({"mtp.fc_hidden.weight": torch.ones(1)}), "has unexpected mtp.fc_hidden.weight"),
        (
            lambda c, w: w.update({f"{LAYER}self_attn.q_proj.weight": torch.ones(HEADS * HEAD, D)}),
            r"mtp.layers.0.self_attn.q_proj.weight is \[32, 32\] and should be \[64, 32\]",
        ),
        (lambda c, w: c.update(mtp_num_hidden_layers=2), "its MTP has 2 layers, and how several follow each other"),
        (lambda c, w: c.update(mtp_use_dedicated_embeddings=True), "sets mtp_use_dedicated_embeddings, which mmspec"),
        (lambda c, w: c.update(hidden_size=64), "its hidden_size is 64, this target's hidden_size is 32"),
        (
            lambda c, w: w.update({f"{LAYER}mlp.experts.1.up_proj.weight": torch.ones(SMALL, D)}),
            "the file lacks mtp.layers.0.mlp.experts.0.gate_proj.weight: download it again",
        ),
    ],
)
def test_traps_are_named(tmp_path: Path, change, message: str) -> None:
    target, weights = qwen_target("Qwen3_5"), mtp_weights()
    config = config_of(target)
    change(config, weights)
    with pytest.raises(MmspecError, match=message):
        by_name(str(write(tmp_path / "d", config, weights)), None, target)


def test_of_another_family(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", config_of(qwen_target("Qwen3_5")), mtp_weights())
    with pytest.raises(MmspecError, match="MTP is read for models of the kinds qwen3_next, .* the target is a llama"):
        by_name(str(folder), None, text_target())
    with pytest.raises(MmspecError, match="drafter 'mtp' comes within models, and the files of this one hold none"):
        by_name("mtp", None, text_target())


def test_quantised_ones_are_not_offered(tmp_path: Path) -> None:
    """Scales of FP8 are tensors that the layout does not have; other packages' tensors of that name neither."""
    target, scales = qwen_target("Qwen3_5"), {f"{LAYER}mlp.up_proj.weight_scale_inv": torch.ones(1)}
    folder = write(tmp_path / "d", config_of(target), mtp_weights() | scales)
    assert "mtp" not in usable(folder)
    with pytest.raises(MmspecError, match="the file has unexpected mtp.layers.0.mlp.up_proj.weight_scale_inv"):
        by_name(str(folder), None, target)
    assert "mtp" not in usable(write(tmp_path / "e", config_of(target), {"mtp.fc_hidden.weight": torch.ones(1)}))


def test_copies(tmp_path: Path) -> None:
    """A copy for another batch of a server drafts the same; a copy in a folder of its own is not made."""
    target = qwen_target("Qwen3_5")
    drafter = by_name(str(write(tmp_path / "d", config_of(target), mtp_weights())), None, target)
    with pytest.raises(MmspecError, match="a part of the model's own files and not saved anew: keep that folder"):
        drafter.save_pretrained(tmp_path / "saved")
    copied = fresh(drafter)
    assert copied.fc.weight is drafter.fc.weight
    first, second = (generate(target, prompts([[1, 3, 4]]), 1, Stop(8), each, seeds=1) for each in (drafter, copied))
    assert first.tokens == second.tokens and first.stats.rounds == second.stats.rounds
