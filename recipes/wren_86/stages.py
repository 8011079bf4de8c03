"""The stages of a speech recipe: recordings, codec, target, drafters."""

import json
import random
from collections import Counter
from functools import partial

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mmspec import zoo
from mmspec.codecs.mel import HOP, RATE, MelCodec
from mmspec.files import write_atomically
from mmspec.pipelines.base import Pipeline
from mmspec.train.recipe import check_drafters, train_drafters
from mmspec.train.run import Run
from recipes.wren_86.codec import encode_utterances, mels, train_codec
from recipes.wren_86.data import Utterance, build
from recipes.wren_86.target import SpeechSequence, held_out_loss, insert_marks, phoneme_tokenizer, train_target

console = Console(stderr=True)


def utterances(run: Run, held_out: bool) -> list[Utterance]:
    """The utterances of every voice that are held out, or those that are not."""
    speech_sequences = build(run.work / "data", **run.recipe["data"])
    return [utterance for voice in speech_sequences.values() for utterance in voice if utterance.held_out == held_out]


def data(run: Run) -> None:
    """Speak the sentences; write those that are held out."""
    samples: Counter[str] = Counter()
    for utterance in utterances(run, False):
        samples[utterance.voice] += utterance.end - utterance.start
    run.out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"prompt": utterance.text, "voice": utterance.voice, "held_out": True}) + "\n"
        for utterance in utterances(run, True)
    ]
    (run.out / "prompts.jsonl").write_text("".join(lines))
    console.print(", ".join(f"{voice} {count / RATE / 3600:.2f} h" for voice, count in samples.items()))


def codec(run: Run) -> None:
    """Train the codec on part of the recordings; weights, the vocoder's too, are stored in float16."""
    stage = run.recipe["codec"]
    counts: Counter[str] = Counter()
    training = []
    for utterance in utterances(run, False):
        counts[utterance.voice] += 1
        if counts[utterance.voice] <= stage["utterances"]:
            training.append(utterance)
    checkpoint = run.file("codec", run.recipe["data"], stage["model"])
    model = train_codec(run.work / "data", training, stage, run.budget(stage), checkpoint, device=run.device)
    model.half().save_pretrained(run.out / "codec")
    (run.out / "codec" / "README.md").unlink(missing_ok=True)  # the hub's empty card


def tokens(run: Run) -> list[tuple[Utterance, Tensor]]:
    """Every utterance and its tokens, made once for this codec."""
    every = [*utterances(run, False), *utterances(run, True)]
    path = run.file("tokens", run.recipe["data"], zoo.weights_hash(run.out / "codec"))
    if not path.exists():
        codes = encode_utterances(MelCodec.from_pretrained(run.out / "codec").float().eval(), run.work / "data", every)
        write_atomically(path, partial(torch.save, codes))
    return list(zip(every, torch.load(path, weights_only=True), strict=True))


def speech_sequences(run: Run) -> tuple[list[tuple[Utterance, SpeechSequence]], PreTrainedTokenizerFast]:
    """Every utterance with its sequence for training, and the phoneme tokenizer."""
    coded, shape = tokens(run), run.recipe["codec"]["model"]
    text = phoneme_tokenizer(
        sorted({letter for utterance, _ in coded for letter in utterance.phonemes}), list(run.recipe["data"]["voices"])
    )

    def sequence(utterance: Utterance, codes: Tensor) -> SpeechSequence:
        onsets = (torch.tensor(utterance.onsets) / (HOP * shape["stride"])).round().long()
        return SpeechSequence(
            utterance.voice,
            text(f"<{utterance.voice}>{utterance.phonemes}").input_ids,
            insert_marks(codes.long(), onsets, shape["codes"]).short(),
        )

    return [(utterance, sequence(utterance, codes)) for utterance, codes in coded], text


def target(run: Run) -> None:
    """Train the decoder-only model and VADUSA's heads with it; weights are stored in bfloat16."""
    stage = run.recipe["target"]
    sequences, text = speech_sequences(run)
    checkpoint = run.file(
        "target", run.recipe["data"], zoo.weights_hash(run.out / "codec"), {k: stage[k] for k in ("model", "heads")}
    )
    training = [sequence for utterance, sequence in sequences if not utterance.held_out]
    held_out = [sequence for utterance, sequence in sequences if utterance.held_out]
    codes = run.recipe["codec"]["model"]["codes"]
    model = train_target(training, text, codes, stage, run.budget(stage), checkpoint, device=run.device)
    model = model.float()
    console.print(f"held out: {held_out_loss(model, text, codes, held_out):.4f} nats a token")
    text.save_pretrained(run.out / "tokenizer")
    model.language.bfloat16().save_pretrained(run.out / "transformer")
    torch.save(model.heads.state_dict(), run.work / "heads.pt")
    ratio = torch.tensor(
        [
            len(sequence.tokens) / len(utterance.phonemes)
            for utterance, sequence in sequences
            if len(utterance.phonemes) >= 20
        ]
    )
    index = {
        "_class_name": "TextToSpeechPipeline",
        "transformer": ["transformers", "LlamaForCausalLM"],
        "voices": list(run.recipe["data"]["voices"]),
        "tokens_per_phoneme": round(1.25 * float(ratio.max()), 2),
        "longest_sentence": int((stage["widths"][-1] - 4) / (1 + float(ratio.quantile(0.99)))),
        "silence": silent_codes(run),
        "interleaved": True,
        **run.recipe["pipeline"],
    }
    (run.out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def silent_codes(run: Run, quieter: float = 3.0) -> list[int]:
    """Codes of silence: those whose mean log-mel level is at most `quieter` nats above that of the quietest code."""
    model = MelCodec.from_pretrained(run.out / "codec").float().eval()
    pairs = [(utterance, codes) for utterance, codes in tokens(run) if utterance.held_out]
    total, count = torch.zeros(model.vocabulary_size), torch.zeros(model.vocabulary_size)
    spectrograms = mels(model, run.work / "data", [utterance for utterance, _ in pairs])
    for mel, (_, codes) in zip(spectrograms, pairs, strict=True):
        level = mel.mean(0).unflatten(0, (-1, model.stride)).mean(1)
        total.index_add_(0, codes.long(), level)
        count.index_add_(0, codes.long(), torch.ones_like(level))
    level = torch.where(count >= 5, total / count.clamp(min=1), torch.inf)
    return torch.nonzero(level.isfinite() & (level <= level.min() + quieter)).flatten().tolist()


def spliced(rng: random.Random, texts: list[str]) -> str:
    """The first half of one text and the second half of another, cut between words."""
    first, second = (rng.choice(texts).split(" ") for _ in range(2))
    return " ".join([*first[: (len(first) + 1) // 2], *second[(len(second) + 1) // 2 :]])


def prompts(run: Run, pipe: Pipeline) -> list[dict]:
    """Texts that the target has not seen, as those of its users will be (it is surer of the ones that it has), and
    training texts with their tokens. Rows of a batch end at about the same time.
    """
    stage, rng = run.recipe["capture"], random.Random(0)
    training = [(utterance, sequence) for utterance, sequence in speech_sequences(run)[0] if not utterance.held_out]
    texts = [utterance.text for utterance, _ in training]
    unseen = sorted((spliced(rng, texts) for _ in range(stage["sampled"])), key=len)
    rows: list[dict] = [{"prompt": text, "voice": rng.choice(pipe.voices)} for text in unseen]
    taken = rng.sample(training, min(stage["taken"], len(training)))
    for utterance, sequence in sorted(taken, key=lambda pair: len(pair[1].tokens)):
        row = {"prompt": utterance.text, "voice": utterance.voice, "tokens": sequence.tokens.tolist()}
        # The synthesiser may have left out a phoneme that it does not know.
        if pipe.encode_examples([row])[0].conditional == [sequence.prompt]:
            rows.append(row)
    return rows


def drafters(run: Run, only: str | None = None) -> None:
    """Train the drafters and calibrate them."""
    train_drafters(run, prompts, only)


check = check_drafters
STAGES = {"data": data, "codec": codec, "target": target, "drafters": drafters}
NEEDED = ("data", "codec", "target", "capture", "drafters", "pipeline")
