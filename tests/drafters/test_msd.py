"""MSD: equal tokens in every setting, a cache that follows commits, the tree's own attention, and released files."""

import json
from pathlib import Path

import pytest
import torch
from tiny import prompts as text_prompts
from tiny import text_target
from tiny_vlm import FAMILIES, IMAGES, KINDS, asked, built, model

from mmspec.drafters.registry import by_name
from mmspec.engine.accept import Committed
from mmspec.engine.cache import TreeCache, causal
from mmspec.engine.loop import Batch, Stop, generate, stream
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError
from mmspec.targets.vision_language import VisionLanguageTarget, VisualPrompts

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_equality(family: str, temperature: float, kind: str) -> None:
    """Rows with images of different sizes, several or none, alone and in one batch, say what plain decoding says
    (fp64).
    """
    rows, target, sampling = (
        [asked(family, sizes, seed) for seed, sizes in enumerate(IMAGES)],
        VisionLanguageTarget(model(family)),
        SamplingOptions(temperature),
    )
    plain = [
        generate(target, VisualPrompts.of([row]), 1, Stop(16), sampling=sampling, seeds=[i]).tokens[0]
        for i, row in enumerate(rows)
    ]
    drafter = built(**KINDS[kind])
    assert (
        generate(target, VisualPrompts.of(rows), len(rows), Stop(16), drafter, sampling=sampling, seeds=0).tokens
        == plain
    )
    for i, row in enumerate(rows[1:3], 1):
        assert generate(target, VisualPrompts.of([row]), 1, Stop(16), drafter, sampling=sampling, seeds=[i]).tokens == [
            plain[i]
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_trees_carry_their_distributions(kind: str) -> None:
    """Under rejection every tree carries normalised distributions over the whole vocabulary."""
    target, seen = VisionLanguageTarget(model("llava")), []

    def watch(state, tree: DraftTree, gumbel_scores, accepted) -> None:
        seen.append(tree)

    prompts = VisualPrompts.of([asked("llava", [(32, 32)])])
    generate(target, prompts, 1, Stop(12), built(**KINDS[kind]), seeds=1, rule="rejection", on_accept=watch)
    tree = max(seen, key=lambda tree: tree.size)
    assert tree.size > 3 and tree.probs is not None and tree.probs.shape[2] == 40
    torch.testing.assert_close(tree.probs[:, 1:].sum(2), torch.ones_like(tree.probs[:, 1:, 0]))
    drafted = KINDS[kind].get("tokens", range(40))
    assert not tree.probs[:, 1:, [token for token in range(40) if token not in drafted]].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_follows_commits(kind: str) -> None:
    """After every round the drafter's last prediction is what one pass over the whole committed sequence gives."""
    target, drafter = VisionLanguageTarget(model("llava")), built(**KINDS[kind])
    rows = [asked("llava", sizes, seed) for seed, sizes in enumerate(IMAGES[:3])]
    checked = 0
    observe = drafter.observe

    def check(state, tree, committed: Committed, gumbel_scores) -> None:
        nonlocal checked
        observe(state, tree, committed, gumbel_scores)
        for row, (prompt, hidden) in enumerate(state.prompt_hidden):
            vectors = drafter.read_prompt(prompt)[1:]
            tokens = torch.tensor(state.tokens[row])
            vectors = torch.cat([vectors, drafter.embed(target, tokens)])
            features = torch.cat([hidden, state.features[0, row, : len(tokens)]])
            text = torch.cat([prompt.is_text[1:], torch.ones(len(tokens), dtype=torch.bool)])
            inputs = drafter.fuse(vectors, features, text)[None]
            cache = TreeCache(1, 1, inputs.shape[1])
            cache.open(inputs.shape[1])
            whole = drafter.layer(
                inputs, cache.mask(causal(1, inputs.shape[1], "cpu")), torch.arange(inputs.shape[1])[None], cache
            )
            torch.testing.assert_close(drafter._last[row], whole[0, -1], rtol=1e-9, atol=1e-9)
            checked += 1

    drafter.observe = check
    with torch.inference_mode():
        list(stream(target, VisualPrompts.of(rows), 3, Stop(12), drafter, seeds=0))
    assert checked > 12


def test_rows_that_join_and_leave() -> None:
    """What the cache has read of the rows that stay is kept, and new ones are read: as if all had been read anew."""
    target, drafter, fresh = VisionLanguageTarget(model("llava")), built(), built()
    rows = [VisualPrompts.of([asked("llava", sizes, seed)]) for seed, sizes in enumerate(IMAGES[:3])]
    batch = Batch(target, drafter, SamplingOptions(1.0))
    batch.join(rows[0], [0], Stop(40))
    batch.round()
    batch.join(rows[1], [1], Stop(40))
    batch.round()
    started = []
    drafter.start = lambda *ignored: started.append(ignored)
    batch.keep([1])
    batch.join(rows[2], [2], Stop(40))
    batch.round()
    batch.keep([1, 0])
    batch.round()
    fresh.start(target, batch.state, SamplingOptions(1.0), False)
    assert not started and torch.equal(drafter._cache.lengths, fresh._cache.lengths)
    torch.testing.assert_close(drafter._last, fresh._last, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["decoupled", "few tokens"])
@pytest.mark.parametrize(("temperature", "coupled"), [(0.0, True), (1.0, True), (1.0, False)])
def test_the_tree_reads_its_own_path(temperature: float, coupled: bool, kind: str) -> None:
    """Children of a node are the best by one pass over the committed sequence and the path to that node, whatever its
    siblings; with the share of the noise that each depth is coupled by, if it is.
    """
    target, drafter = text_target(), built(**KINDS[kind], coupling=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    drafter.coupled = coupled
    drafted = torch.tensor(KINDS[kind].get("tokens", range(target.vocabulary_size)))
    drafted = drafted[drafted < target.vocabulary_size]
    trees = []
    draft = drafter.draft

    def check(state, noise, limit) -> DraftTree:
        tree = draft(state, noise, limit)
        prompt, hidden = state.prompt_hidden[0]
        vectors = torch.cat([prompt.vectors[1:], target.embed(torch.tensor(state.tokens[0], dtype=torch.long))])
        features = torch.cat([hidden, state.features[0, 0, : len(state.tokens[0])]])
        committed = drafter.fuse(vectors, features)
        parents, tokens = tree.parents[0].tolist(), tree.tokens[0].tolist()
        for node in range(tree.size):
            path = [node]
            while parents[path[-1]] > 0:
                path.append(parents[path[-1]])
            inputs = committed
            predicted = None
            for step in [None, *(reversed(path) if node else [])]:
                if step is not None:
                    inputs = torch.cat([inputs, drafter.fuse(target.embed(torch.tensor([tokens[step]])), predicted)])
                size = len(inputs)
                cache = TreeCache(1, 1, size)
                cache.open(size)
                predicted = drafter.layer(
                    inputs[None], cache.mask(causal(1, size, "cpu")), torch.arange(size)[None], cache
                )[0, -1:]
            children = [tokens[child] for child, parent in enumerate(parents) if parent == node]
            scores = drafter.logits(target, drafter.head(target), predicted)[0]
            if temperature and coupled:
                depth = len(path) if node else 0
                gumbel = noise.gumbel(state.counts, depth + 1)[0, depth, drafted]
                if depth < drafter.depth:
                    scores = scores.log_softmax(-1) + drafter.coupling[depth] * gumbel
            assert set(children) == set(drafted[scores.topk(len(children)).indices].tolist())
        trees.append(tree)
        return tree

    drafter.draft = check
    with torch.inference_mode():
        generate(target, text_prompts([[1, 3, 4, 2]]), 1, Stop(10), drafter, sampling=SamplingOptions(temperature))
    assert max(tree.size for tree in trees) == 1 + drafter.max_nodes and max(tree.height for tree in trees) > 2


def test_a_prompt_of_one_token() -> None:
    """Its first token is all that the drafter can read; a longer one beside it is read all the same."""
    plain = [
        generate(text_target(), text_prompts([ids]), 1, Stop(10), seeds=[i]).tokens[0]
        for i, ids in enumerate(([1], [1, 4, 2, 3]))
    ]
    drafter = built()
    assert generate(text_target(), text_prompts([[1], [1, 4, 2, 3]]), 2, Stop(10), drafter, seeds=0).tokens == plain
    assert drafter._cache.lengths[1] == drafter._cache.lengths[0] + 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_processors(temperature: float) -> None:
    """A repetition penalty reaches every place and the bonus token: equal to plain decoding, which differs from that
    without (fp64).
    """
    target, row = VisionLanguageTarget(model("llava")), asked("llava", [(32, 32)])
    options = [SamplingOptions(temperature, top_k=30, repetition_penalty=penalty) for penalty in (1.8, 1.0)]
    plain, other = (
        generate(target, VisualPrompts.of([row]), 1, Stop(24), sampling=sampling, seeds=2).tokens
        for sampling in options
    )
    assert (
        generate(target, VisualPrompts.of([row]), 1, Stop(24), built(), sampling=options[0], seeds=2).tokens
        == plain
        != other
    )


def target() -> VisionLanguageTarget:
    return VisionLanguageTarget(model("llava"))


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A folder in the layout that MSD's authors publish, with random weights."""
    drafter = built(torch.float32, own_embedding=39)  # the picture's token, 39, came later
    fields = dict(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=39,
    )
    (tmp_path / "config.json").write_text(
        json.dumps(fields | {"model_type": "llava", "num_hidden_layers": 1, "pad_token_id": 0})
    )
    torch.save(
        drafter.state_dict() | {"layers.0.input_layernorm.weight": torch.ones(32)}, tmp_path / "pytorch_model.bin"
    )
    return tmp_path


def test_released_files(released: Path) -> None:
    """They load as they are, tensors of no effect too, and draft as the drafter that they came from."""
    found, wanted = by_name(str(released), None, target()), built(torch.float32, own_embedding=39).double()
    prompts = VisualPrompts.of([asked("llava", [(32, 32)])])
    one, other = (generate(target(), prompts, 1, Stop(16), drafter, seeds=0) for drafter in (found, wanted))
    assert one.tokens == other.tokens and one.stats.runs == other.stats.runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("fc.weight"), "the file lacks fc.weight"),
        (
            lambda found: found.update({"layers.1.mlp.up_proj.weight": torch.ones(1)}),
            "the file has unexpected layers.1.mlp.up_proj.weight",
        ),
        (
            lambda found: found.update({"fc.weight": torch.ones(2, 2)}),
            r"fc.weight is \[2, 2\] and should be \[32, 64\]",
        ),
    ],
)
def test_released_files_that_do_not_fit(released: Path, change, message: str) -> None:
    found = torch.load(released / "pytorch_model.bin", weights_only=True)
    change(found)
    torch.save(found, released / "pytorch_model.bin")
    with pytest.raises(MmspecError, match=message):
        by_name(str(released), None, target())


def test_released_files_load_by_name(released: Path, tmp_path: Path) -> None:
    """As a model's drafter, and from a file that is damaged an error that names it."""
    from mmspec import drafters

    folder = tmp_path / "model" / "drafters" / "msd"
    folder.mkdir(parents=True)
    for path in (released / "config.json", released / "pytorch_model.bin"):
        (folder / path.name).write_bytes(path.read_bytes())
    target = VisionLanguageTarget(model("llava"))
    drafter = drafters.load("msd", tmp_path / "model", target, nodes=9)
    assert drafter.nodes == 9 and drafter.fc.weight.dtype == torch.float64
    other = VisionLanguageTarget(model("llava"))
    other.hidden_size = 64
    with pytest.raises(MmspecError, match="its hidden_size is 32, this target's hidden_size is 64"):
        drafters.load("msd", tmp_path / "model", other)
    for damage in (b"x" * 40, b""):
        (folder / "pytorch_model.bin").write_bytes(damage)
        with pytest.raises(MmspecError, match="pytorch_model.bin is truncated or foreign"):
            drafters.load("msd", tmp_path / "model", target)


def test_released_folders_that_lack_files(released: Path) -> None:
    (released / "pytorch_model.bin").unlink()
    with pytest.raises(MmspecError, match="has neither model.safetensors nor pytorch_model.bin"):
        by_name(str(released), None, target())
    (released / "config.json").write_text("{}")
    with pytest.raises(MmspecError, match="its config.json names no known kind"):
        by_name(str(released), None, target())
