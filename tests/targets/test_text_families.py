"""Every text family is its own model, however it is drafted, or is refused by name."""

import pytest
import torch
from text_families import REFUSED, TEXT, build, text_family
from tiny import OracleDrafter, drafter, prompts

from mmspec.engine.loop import Batch, Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.registry import target_of

LENGTH, SEED = 24, 7
TEXTS = [
    [1, 17, 23, 5, 9, 41, 17, 23, 30, 8, 52, 44, 3],
    [1, 33, 12, 60],
    [1, 25, 25, 14, 48, 6, 39, 11],
]
FAST = ("Llama", "Qwen2, sliding", "Gemma 3", "Mixtral")
FAMILIES = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow, pytest.mark.sweep]) for name in TEXT]
SAMPLINGS = {"greedy": SamplingOptions(0), "T=1": SamplingOptions()}


@pytest.mark.parametrize("name", FAMILIES)
def test_models_depend_on_everything(name: str) -> None:
    """What the tests stand on: another first token or another second token from the end changes the law."""
    text = torch.tensor([TEXTS[2], [2, *TEXTS[2][1:]], [*TEXTS[2][:-2], 5, TEXTS[2][-1]]])
    with torch.inference_mode():
        logits = text_family(name)(text, use_cache=False).logits[:, -1]
    for other in logits[1:]:
        assert (other - logits[0]).std() > 0.01 * logits[0].std()


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_is_generate_of_transformers(name: str) -> None:
    """Rows of different length in one batch say what `generate` says for each of them alone."""
    model = text_family(name)
    found = generate(target_of(model), prompts(TEXTS), 3, Stop(LENGTH), sampling=SamplingOptions(0)).tokens
    for text, tokens in zip(TEXTS, found, strict=True):
        ids = torch.tensor([text])
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LENGTH, eos_token_id=None
        )
        assert tokens == whole[0, len(text) :].tolist()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_drafters_change_nothing(name: str, sampling: str) -> None:
    """Chains and random trees, alone and in a batch, give the tokens of plain decoding of each row alone."""
    target, options = target_of(text_family(name)), SAMPLINGS[sampling]
    wanted = [
        generate(target, prompts([text]), 1, Stop(LENGTH), sampling=options, seeds=SEED + row).tokens[0]
        for row, text in enumerate(TEXTS)
    ]
    for kind in ("none", "jacobi", "lookup", "oracle"):
        for rows in (slice(0, 1), slice(0, 3)):
            texts, answers = TEXTS[rows], wanted[rows]
            oracle = OracleDrafter(answers, target.vocabulary_size) if kind == "oracle" else drafter(kind, target)
            found = generate(target, prompts(texts), len(texts), Stop(LENGTH), oracle, sampling=options, seeds=SEED)
            assert found.tokens == answers, f"{kind}, {len(texts)} rows"


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_are_of_the_models_own_law(name: str) -> None:
    """At temperature 1 each token is the argmax of the model's own forward, without cache, plus the same noise."""
    model = text_family(name)
    target = target_of(model)
    found = generate(target, prompts(TEXTS), 3, Stop(LENGTH), seeds=SEED).tokens
    for row, (text, tokens) in enumerate(zip(TEXTS, found, strict=True)):
        with torch.inference_mode():
            logits = model(torch.tensor([text + tokens]), use_cache=False).logits[0, len(text) - 1 : -1]
        noise = Noise([SEED + row], target.vocabulary_size).gumbel([0], LENGTH)[0]
        assert tokens == (logits.log_softmax(-1) + noise).argmax(-1).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_join_and_leave(name: str) -> None:
    """Rows that come later, and the one that stays, say what each says alone."""
    target, sampling = target_of(text_family(name)), SamplingOptions(0)
    batch = Batch(target, drafter("jacobi", target), sampling)
    batch.join(prompts(TEXTS[:1]), [0], Stop(LENGTH))
    batch.round()
    batch.join(prompts(TEXTS[1:]), [0, 0], Stop(LENGTH))
    batch.keep([2, 0])
    while any(batch.running):
        batch.round()
    alone = [
        generate(target, prompts([text]), 1, Stop(LENGTH), sampling=sampling).tokens[0] for text in (TEXTS[2], TEXTS[0])
    ]
    assert batch.state is not None and batch.state.tokens == alone


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_right_is_refused_in_one_line(name: str) -> None:
    """Each refusal names the class and the reason, before a token is said."""
    kind, options, reason = REFUSED[name]
    model = build(kind, options)
    with pytest.raises(MmspecError, match=f"^{type(model).__name__} .*{reason}") as error:
        target_of(model)
    assert "\n" not in str(error.value)
