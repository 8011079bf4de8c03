"""Training of MSD: the target's own answers and features, text before pictures, and steps that feed the drafter its own predictions."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LlavaProcessor

from mmspec.drafters.msd import MsdDrafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.files import write_atomically
from mmspec.targets.vision_language import VisionLanguageTarget, VisualPrompts
from mmspec.train.drafter import Law, cross_entropy, mean, settle
from mmspec.train.loop import Budget, fit, optimizers
from mmspec.train.run import Run
from recipes.magpie_135.dialogue import encode

# Questions and answers in turn, the picture, and whether the last answer came to its end.
Chat = tuple[tuple[tuple[str, str], ...], Tensor | None, bool]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Chats as the target read them: token ids, which are answers, hidden states of all positions but the last, and a picture's vectors.

    `seeds` are those that an answer was sampled with at T = 1; -1 marks answers that were not sampled.
    """

    ids: list[Tensor]
    answers: list[Tensor]
    hidden: list[Tensor]
    visual: list[Tensor]
    seeds: list[int]


def record(
    target: VisionLanguageTarget,
    known: LlavaProcessor,
    ends: frozenset[int],
    chats: Sequence[Chat],
    batch: int,
    own: bool,
    cache: Path,
    length: int = 160,
) -> Recorded:
    """The last question of every chat with the target's `own` answer, greedy and sampled in turn, or with that of the data."""
    if cache.exists():
        return Recorded(**torch.load(cache, weights_only=True))
    found = Recorded([], [], [], [], [])
    target.min_query_len = 1
    for start in track(range(0, len(chats), batch), "recording answers"):
        part = chats[start : start + batch]
        asked = [encode(known, [*turns[:-1], (turns[-1][0], "")], picture is not None) for turns, picture, _ in part]
        images = [{} if picture is None else {"pixel_values": picture[None]} for _, picture, _ in part]
        prompts = VisualPrompts([one.ids for one in asked], images=images)
        sampled = own and start // batch % 2 == 1
        if not own:
            whole = [encode(known, turns, picture is not None, ended).ids for turns, picture, ended in part]
            # A newline follows the end of an answer.
            said = [ids[len(one.ids) : -1 if ended else None] for ids, one, (_, _, ended) in zip(whole, asked, part)]
        else:
            law = SamplingOptions(1.0 if sampled else 0.0)
            said = generate(target, prompts, len(part), Stop(length, ends), sampling=law, seeds=start).tokens
        whole = [one.ids + answer for one, answer in zip(asked, said)]
        state = target.prefill(VisualPrompts(whole, images=images), 1, True)
        for row, (reading, hidden) in enumerate(state.prompt_hidden):
            ids = torch.tensor(whole[row], dtype=torch.int32)
            found.ids.append(ids)
            found.answers.append(torch.arange(len(ids)) >= len(asked[row].ids))
            found.hidden.append(hidden.cpu())
            found.visual.append(reading.vectors[~reading.is_text].cpu())
            found.seeds.append(start + row if sampled else -1)
    write_atomically(
        cache, lambda partial: torch.save({part.name: getattr(found, part.name) for part in fields(found)}, partial)
    )
    return found


def vocabulary(data: Recorded, size: int) -> list[int]:
    """The tokens that answers have most often, in order of their ids."""
    seen: Counter[int] = Counter()
    for ids, answer in zip(data.ids, data.answers):
        seen.update(ids[answer].tolist())
    return sorted(token for token, _ in seen.most_common(size))


@dataclass(frozen=True, slots=True)
class Batch:
    """`vectors[row, t]` of token t + 1, features of token t, of token t + 1, whether token t + 1 is text, and whether token t + 2 is an answer's."""

    vectors: Tensor
    before: Tensor
    after: Tensor
    text: Tensor
    wanted: Tensor
    ids: Tensor


@torch.no_grad()
def pack(target: VisionLanguageTarget, data: Recorded, rows: list[int]) -> Batch:
    """Chats of one batch, padded on the right."""
    parts: list[list[Tensor]] = [[] for _ in range(6)]
    for row in rows:
        ids, hidden, visual = data.ids[row].long(), data.hidden[row].float(), data.visual[row].float()
        vectors = target.embed(ids.to(target.device)).float().cpu()
        text = torch.ones(len(ids), dtype=torch.bool)
        if len(visual):
            text = ids != target.model.config.image_token_id
            vectors[~text] = visual
        answer = data.answers[row]
        for part, value in zip(parts, (vectors[1:-1], hidden[:-1], hidden[1:], text[1:-1], answer[2:], ids[2:])):
            part.append(value)
    return Batch(*(pad_sequence(part, batch_first=True).to(target.device) for part in parts))


def loss(
    drafter: MsdDrafter, head: Tensor, batch: Batch, steps: int, noise: float, feature: float = 1.0, soft: float = 0.1
) -> dict[str, Tensor]:
    """SmoothL1 of the predicted features and soft cross entropy of their laws, at the places that predict answers.

    Step k reads, for its last k positions, what the drafter itself predicted in the steps before (HASS, EAGLE-3); all earlier ones are the
    target's. `noise` is the amplitude of uniform noise on the true ones, as a share of their root mean square (MSD's 0.2 * 512 / length suits
    long chats, and drowns short ones). Weights of the two terms are MSD's; laws are over the drafting vocabulary.
    """
    rows, length = batch.text.shape
    law = F.linear(batch.after.to(head.dtype), head).float().softmax(-1)
    places = torch.arange(length, device=head.device)
    cache, features = DynamicCache(), batch.before
    if noise:
        features = features + (torch.rand_like(features) - 0.5) * 2 * noise * features.square().mean().sqrt()
    terms: dict[str, list[Tensor]] = {"feature": [], "soft": [], "right": []}
    for step in range(steps):
        mask = path_mask(places, step).expand(rows, 1, -1, -1)
        out = drafter.layer(drafter.fuse(batch.vectors, features, batch.text), mask, places.expand(rows, -1), cache)
        valid = drafted(batch.wanted, step)
        logits = F.linear(out.to(head.dtype), head).float()
        terms["feature"].append(
            mean(F.smooth_l1_loss(out.float(), batch.after.float(), reduction="none").mean(-1), valid)
        )
        terms["soft"].append(mean(cross_entropy(logits, law), valid))
        terms["right"].append(mean((logits.argmax(-1) == law.argmax(-1)).float(), valid))
        features = torch.cat([out[:, :1], out[:, :-1]], 1)
    total = sum(feature * a + soft * b for a, b in zip(terms["feature"], terms["soft"]))
    shown = {name: values[0].detach() for name, values in terms.items()}
    return {"loss": torch.as_tensor(total) / steps, **shown, "last": terms["right"][-1].detach()}


def path_mask(places: Tensor, step: int) -> Tensor:
    """`place (step place)`: what a place sees at `step`, among the keys of all steps so far: true features up to `step` places before it,
    then of every later step the one place on its own path."""
    ahead = places[:, None] - places
    return torch.cat([ahead >= step, *(ahead == step - k for k in range(1, step + 1))], 1)


def drafted(wanted: Tensor, step: int) -> Tensor:
    """Places whose prediction a draft makes at depth `step`: all tokens of the draft are an answer's, `wanted[row, t]` telling of token t + 2."""
    return wanted & F.pad(wanted, (step, 0))[:, : wanted.shape[1]]


def batches(
    target: VisionLanguageTarget, data: Recorded, rows: list[int], size: int, budget: Budget, stages: int, seed: int
) -> Iterator[Batch]:
    """Endless batches of chats of similar length. With two stages the first half of the budget is text alone, and then the share
    of chats with pictures rises to all (MSD)."""
    chance = random.Random(seed)
    text = sorted((row for row in rows if not len(data.visual[row])), key=lambda row: len(data.ids[row]))
    seen = sorted((row for row in rows if len(data.visual[row])), key=lambda row: len(data.ids[row]))
    while True:
        share = 0.8 if stages == 1 else 2 * budget.progress - 1
        pool = seen if seen and (not text or chance.random() < share) else text
        start = chance.randrange(max(1, len(pool) - size + 1))
        yield pack(target, data, pool[start : start + size])


def calibrate(
    drafter: MsdDrafter, target: VisionLanguageTarget, data: Recorded, sampled: list[int], greedy: list[int]
) -> None:
    """Coupling and sharpness of each depth for answers that were sampled, and the sharpness for greedy ones."""
    settle(drafter, laws(drafter, target, data, greedy))
    drafter.greedy = list(drafter.beta)
    settle(drafter, laws(drafter, target, data, sampled))


@torch.inference_mode()
def laws(drafter: MsdDrafter, target: VisionLanguageTarget, data: Recorded, rows: list[int]) -> list[list[Law]]:
    """What the drafter says along the answers at each depth, in drafting vocabulary; greedy answers have no noise."""
    depths: list[list[Law]] = [[] for _ in range(drafter.depth)]
    head = drafter.head(target).to(drafter.fc.weight.dtype)
    index = torch.full((target.vocabulary_size,), -1, device=target.device)
    index[drafter.tokens if drafter.tokens is not None else slice(None)] = torch.arange(len(head), device=target.device)
    for row in rows:
        batch = pack(target, data, [row])
        length = batch.text.shape[1]
        places = torch.arange(length, device=target.device)
        first = int(data.answers[row].nonzero()[0])
        drawn = data.seeds[row] >= 0
        noise = (
            Noise([max(0, data.seeds[row])], target.vocabulary_size)
            .gumbel([0], len(data.ids[row]) - first)[0]
            .to(target.device)
            * drawn
        )
        cache, features = DynamicCache(), batch.before.to(drafter.fc.weight.dtype)
        vectors = batch.vectors.to(features.dtype)
        for depth in range(drafter.depth):
            mask = path_mask(places, depth)[None, None]
            out = drafter.layer(drafter.fuse(vectors, features, batch.text), mask, places[None], cache)
            kept = drafted(batch.wanted, depth)[0].nonzero()[:, 0]
            log_q = torch.log_softmax(drafter.logits(head, out[0, kept]).float(), -1)
            shaken = (
                noise[kept + 2 - first][:, drafter.tokens] if drafter.tokens is not None else noise[kept + 2 - first]
            )
            depths[depth].append((row, kept - depth, log_q, shaken, index[batch.ids[0, kept]]))
            features = torch.cat([out[:, :1], out[:, :-1]], 1)
    return depths


def train_msd(
    run: Run, target: VisionLanguageTarget, recorded: Callable[[bool], Recorded], only: str | None = None
) -> None:
    """Every drafter of a recipe, or one, trained, calibrated and saved in bfloat16.

    `recorded(own)` are chats with the target's own answers or with those of the data; 24 sampled and 24 greedy ones of the former calibrate.
    """
    text, own = target.model.config.get_text_config(), recorded(True)
    pictured = [row for row, seen in enumerate(own.visual) if len(seen)]
    kinds = [[row for row in pictured if (own.seeds[row] >= 0) == sampled] for sampled in (True, False)]
    sampled, greedy = (found[:: max(1, len(found) // 24)][:24] for found in kinds)
    held = {*sampled, *greedy}
    for name, stage in run.recipe["drafters"].items():
        if only not in (None, name):
            continue
        torch.manual_seed(0)
        data = own if stage.get("own_answers", True) else recorded(False)
        rows = [row for row in range(len(data.ids)) if row not in held]
        shape = {
            "hidden_size": target.hidden_size,
            "intermediate_size": text.intermediate_size,
            "heads": text.num_attention_heads,
            "kv_heads": text.num_key_value_heads,
            "eps": text.rms_norm_eps,
            "tokens": vocabulary(own, stage["vocabulary"]),
            **stage["model"],
        }
        drafter = MsdDrafter(**shape, target=target.weights_hash)
        head = drafter.head(target).bfloat16()

        budget = run.budget(stage)

        def source(
            step: int, budget: Budget = budget, stage: dict = stage, data: Recorded = data, rows: list[int] = rows
        ) -> Iterator[Batch]:
            return batches(target, data, rows, stage["batch"], budget, stage.get("stages", 2), step)

        def terms(drafter: MsdDrafter, batch: Batch, stage: dict = stage, head: Tensor = head) -> dict[str, Tensor]:
            return loss(
                drafter, head, batch, stage["steps"], stage["noise"], stage.get("feature", 1.0), stage.get("soft", 0.1)
            )

        chosen = optimizers(drafter, stage["lr"], 0.0, stage.get("muon_lr"))
        checkpoint = run.file(name, target.weights_hash, {key: stage[key] for key in stage if key != "budget"})
        drafter = fit(name, drafter, source, terms, chosen, budget, checkpoint, device=run.device)
        drafter = drafter.float().to(target.device).eval()
        calibrate(drafter, target, own, sampled, greedy)
        config = shape | {
            "kind": "msd",
            "target": target.weights_hash,
            "beta": drafter.beta,
            "coupling": drafter.coupling,
            "greedy": drafter.greedy,
        }
        folder = run.out / "drafters" / name
        drafter.bfloat16().save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        (folder / "config.json").write_text(json.dumps(config) + "\n")
