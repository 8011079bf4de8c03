"""People's speech language models: plain decoding gives the ids of the model's own forward and `generate`, drafted or
not, alone or in a batch.
"""

from pathlib import Path

import pytest
import tiny_speakers
import torch
from tiny import OracleDrafter, drafter

import mmspec
from mmspec import reference
from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.pipelines.cosyvoice import repetition_aware
from mmspec.pipelines.family_speech import FamilySpeechPipeline
from mmspec.pipelines.outetts import recent_penalty
from mmspec.targets.base import Prompts

FAMILIES = ("orpheus", "llasa", "outetts", "cosyvoice")
TEXTS = ["hello there.", "how are you today? i am fine.", "yes"]
LENGTH = 60


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FamilySpeechPipeline:
    save = getattr(tiny_speakers, f"save_{request.param}")
    folder: Path = save(tmp_path_factory.mktemp("models") / request.param)
    made = mmspec.pipeline("text-to-speech", folder, device="cpu", dtype="fp64")
    assert isinstance(made, FamilySpeechPipeline)
    return made


def spoken(pipe: FamilySpeechPipeline, prompts: Prompts, sampling: SamplingOptions, seed: int = 5, drafted=None):
    """Tokens of each row, its end included."""
    stop = Stop(LENGTH, pipe.ends)
    return generate(pipe.target, prompts, len(prompts.conditional), stop, drafted, sampling=sampling, seeds=seed).tokens


def samplings(pipe: FamilySpeechPipeline) -> list[SamplingOptions]:
    """Greedy, at T = 1, and as the family samples by default."""
    return [SamplingOptions(0.0), SamplingOptions(), SamplingOptions(**pipe.sampling_kwargs({}))]


def rows(pipe: FamilySpeechPipeline) -> Prompts:
    return pipe.encode(TEXTS, pipe.voices[0])


def possible(pipe: FamilySpeechPipeline, prompt: list[int], count: int) -> list[int]:
    """Ids that a family's own inference code keeps after `count` new ones."""
    ids, family = pipe.speaker.tokenizer.convert_tokens_to_ids, pipe.speaker.name
    if family == "Orpheus":
        codes, slot = tiny_speakers.SNAC_CODES, count % 7
        kept = [ids(f"<custom_token_{10 + codes * slot + code}>") for code in range(codes)]
        return kept + ([ids("<custom_token_2>")] if slot == 0 else [])
    if family == "Llasa":
        return [ids(f"<|s_{i}|>") for i in range(tiny_speakers.LLASA_CODES)] + [ids("<|SPEECH_GENERATION_END|>")]
    if family == "CosyVoice 2":
        return list(range(tiny_speakers.COSYVOICE_CODES + (count >= 2 * (len(prompt) - 2))))
    return list(range(len(pipe.transformer.lm_head.weight)))


@torch.inference_mode()
def stepwise(pipe: FamilySpeechPipeline, prompt: list[int], noise: Noise | None) -> list[int]:
    """Argmax of the model's own forward over the whole sequence, and the noise, among the ids that are possible."""
    ids, new = list(prompt), []
    numbers = {model_id: token for token, model_id in enumerate(pipe.target.vocabulary.tolist())}
    ends = {int(pipe.target.vocabulary[token]) for token in pipe.ends}
    while len(new) < LENGTH and not ends.intersection(new):
        logits = pipe.transformer(torch.tensor([ids]), use_cache=False).logits[0, -1]
        kept = possible(pipe, prompt, len(new))
        gumbel = noise.gumbel([len(new)], 1)[0, 0] if noise else torch.zeros(len(numbers))
        scores = [float(logits[model_id]) + float(gumbel[numbers[model_id]]) for model_id in kept]
        new.append(kept[max(range(len(kept)), key=scores.__getitem__)])
        ids.append(new[-1])
    return new


@pytest.mark.sweep
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_of_the_own_forward(pipe: FamilySpeechPipeline, temperature: float) -> None:
    """equality: greedy and at T = 1 with the same noise, against a loop without cache (fp64)."""
    prompts = rows(pipe)
    for row, prompt in enumerate(prompts.conditional):
        (tokens,) = spoken(pipe, prompts.select(slice(row, row + 1), 1.0), SamplingOptions(temperature), 5 + row)
        noise = Noise([5 + row], pipe.target.vocabulary_size) if temperature else None
        assert pipe.target.ids(torch.tensor(tokens)).tolist() == stepwise(pipe, prompt, noise)


@pytest.mark.parametrize("penalty", [1.0, 1.1])
def test_greedy_equals_generate(pipe: FamilySpeechPipeline, penalty: float) -> None:
    """equality: greedy tokens are those of the model's own `generate`, kept to the family's order of codes (fp64)."""
    prompts, sampling = rows(pipe).select(slice(1, 2), 1.0), SamplingOptions(0.0, repetition_penalty=penalty)
    if reference.why_not_comparable(pipe.target, prompts, sampling):
        assert pipe.speaker.name == "CosyVoice 2" and penalty != 1
        return
    (tokens,) = spoken(pipe, prompts, sampling)
    wanted = reference.greedy_ids(pipe.target, prompts, Stop(LENGTH, pipe.ends), sampling)
    assert pipe.target.ids(torch.tensor(tokens)).tolist() == wanted and len(wanted) > 8


@pytest.mark.sweep
def test_drafts_and_batches_equal_plain_decoding(pipe: FamilySpeechPipeline) -> None:
    """equality: three rows of different length give what each gives alone, drafted or not, also with the family's own
    processors (fp64).
    """
    prompts = rows(pipe)
    assert len(set(map(len, prompts.conditional))) == 3
    for sampling in samplings(pipe):
        plain = [spoken(pipe, prompts.select(slice(i, i + 1), 1.0), sampling, 5 + i)[0] for i in range(3)]
        drafted = [drafter(name, pipe.target) for name in ("none", "jacobi", "lookup")]
        oracles = [OracleDrafter(plain, pipe.target.vocabulary_size, seed=seed) for seed in range(2)]
        for one in (*drafted, *oracles):
            assert spoken(pipe, prompts, sampling, drafted=one) == plain
        alone = OracleDrafter(plain[:1], pipe.target.vocabulary_size, seed=3)
        assert spoken(pipe, prompts.select(slice(0, 1), 1.0), sampling, drafted=alone) == plain[:1]


def test_repetition_aware_sampling() -> None:
    """distribution: the processor's is that of drawing from the nucleus, and anew from all if that repeats."""
    torch.manual_seed(0)
    scores, before = 2 * torch.randn(1, 12).double(), torch.tensor([[9, 3, 3, 1, 0, 5, 9, 9, 2, 4, 4]])
    processed = repetition_aware(0.7, 5)(before, scores).softmax(1)[0]
    whole = scores.softmax(1)[0]
    order, nucleus = whole.argsort(descending=True).tolist(), torch.zeros(12).double()
    for token in order[:5]:
        if nucleus.sum() < 0.7:
            nucleus[token] = whole[token]
    nucleus /= nucleus.sum()
    wanted, recent = torch.zeros(12).double(), set(before[0, -10:].tolist())
    for token in range(12):  # what is drawn first, and what is drawn in its place
        wanted += nucleus[token] * (whole if token in recent else torch.nn.functional.one_hot(torch.tensor(token), 12))
    assert 0 < nucleus[sorted(recent)].sum() < 1 and torch.allclose(processed, wanted)
    assert repetition_aware(0.7, 5) is repetition_aware(0.7, 5)


def test_recent_penalty() -> None:
    """parity: transformers' penalty, of the last 64 tokens alone."""
    scores = torch.randn(1, 9, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[7] * 3 + [2] * 64])
    changed = (recent_penalty(1.3)(ids, scores.clone()) != scores)[0].nonzero().flatten().tolist()
    assert changed == [2] and recent_penalty(1.3)(ids[:, :0], scores) is scores
