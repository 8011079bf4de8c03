"""A small language model as drafter: it reads what the target reads and drafts what it would say; its tokenizer must
be the target's.
"""

import json
from pathlib import Path

import pytest
import torch
from text_families import text_family
from tiny import llama, prompts
from tiny_layouts import check_equal, check_joining
from tiny_text import save_chat_model
from tiny_vlm import TEXT, asked, model
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmspec.drafters.registry import by_name
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget
from mmspec.targets.vision_language import VisionLanguageTarget, VisualPrompts


def save_small(path: Path, size: int, extra: str = "") -> Path:
    """A Llama of one layer over `size` ids, and a tokenizer of words w0, w1, ..., the last of which may be another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        config = LlamaConfig(**TEXT | {"vocab_size": size, "num_hidden_layers": 1, "hidden_size": 16})
        LlamaForCausalLM(config).save_pretrained(path)
    return save_tokenizer(path, size, extra)


def save_tokenizer(path: Path, size: int, extra: str = "") -> Path:
    words = {f"w{i}": i for i in range(size - bool(extra))} | ({extra: size - 1} if extra else {})
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0"))).save_pretrained(path)
    return path


def drafter_for(folder: Path, target, beside: Path):
    return by_name(str(folder), beside, target)


def test_text(tmp_path: Path) -> None:
    """Children are what the small model itself says after everything before them; tokens are plain decoding's."""
    target, beside = CausalTarget(llama()), save_tokenizer(tmp_path / "target", 40)
    folder = save_small(tmp_path / "small", 36)
    small = LlamaForCausalLM.from_pretrained(folder).double()
    drafter, sizes = drafter_for(folder, target, beside), []
    draft = drafter.draft

    def check(state, noise, limit) -> DraftTree:
        tree = draft(state, noise, limit)
        parents = tree.parents.tolist()
        for row in range(state.rows):
            for node in range(tree.size):
                below = [child for child in range(1, tree.size) if parents[row][child] == node]
                path, above = [], node
                while above > 0:
                    path.insert(0, int(tree.tokens[row, above]))
                    above = parents[row][above]
                if below:
                    ids = torch.tensor([[min(i, 35) for i in state.history(row)] + path])
                    best = small(ids).logits[0, -1].topk(len(below)).indices
                    assert set(tree.tokens[row, below].tolist()) == set(best.tolist())
        sizes.append(tree.size)
        return tree

    drafter.draft = check
    given = prompts([[1, 3, 4, 2], [1, 5, 9, 11, 7, 2]])
    with torch.inference_mode():
        generate(target, given, 2, Stop(9), drafter, sampling=SamplingOptions(0))
    assert max(sizes) == 11
    check_equal(target, folder, beside=beside)
    check_joining(target, folder, beside)


def test_the_target_as_its_own_drafter(tmp_path: Path) -> None:
    """All that is drafted is right, sampled with the shared noise too."""
    folder = save_tokenizer(tmp_path / "m", 40)
    llama().save_pretrained(folder)
    target = CausalTarget(llama())
    for temperature in (0.0, 1.0):
        drafter = drafter_for(folder, target, folder)
        done = generate(target, prompts([[1, 3, 4]]), 1, Stop(24), drafter, sampling=SamplingOptions(temperature))
        assert done.stats.rounds <= 5


def test_pictures_are_left_out(tmp_path: Path) -> None:
    """Of a picture's prompt the small model reads the text alone."""
    target, beside = VisionLanguageTarget(model("llava")), save_tokenizer(tmp_path / "target", 40)
    folder = save_small(tmp_path / "small", 40)
    given = VisualPrompts.of([asked("llava", [(32, 32)], 1), asked("llava", [], 2)])
    drafter = drafter_for(folder, target, beside)
    with torch.inference_mode():
        drafter.start(target, target.prefill(given, 60, False), SamplingOptions(0), False)
        texts = [[i for i in row if i != 39] for row in given.conditional]
        assert drafter._cache.lengths.tolist() == [len(text) for text in texts]
        small = LlamaForCausalLM.from_pretrained(folder).double()
        for row, text in enumerate(texts):
            expected = small(torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(drafter.drafted_logits(drafter._last[row, None, None])[0, 0], expected)
    check_equal(target, folder, given, beside=beside)


def test_other_vocabularies_are_refused(tmp_path: Path) -> None:
    target, beside = CausalTarget(llama()), save_tokenizer(tmp_path / "target", 40)
    folder = save_small(tmp_path / "small", 36, extra="other")
    with pytest.raises(MmspecError, match=r"another vocabulary than the target \(1 of 36 .*'other' is 35, there None"):
        drafter_for(folder, target, beside)
    with pytest.raises(MmspecError, match="the target has no tokenizer"):
        by_name(str(folder), None, target)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt9", "num_attention_heads": 2}))
    with pytest.raises(MmspecError, match="config.json"):
        drafter_for(save_tokenizer(folder, 40), target, beside)


def test_recurrent_ones_are_refused(tmp_path: Path) -> None:
    text_family("LFM2").save_pretrained(tmp_path / "small")
    with pytest.raises(MmspecError, match="a Lfm2ForCausalLM, has recurrent layers, whose states a drafter cannot cut"):
        drafter_for(save_tokenizer(tmp_path / "small", 40), CausalTarget(llama()), save_tokenizer(tmp_path / "m", 40))


def test_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mmspec ask --drafter FOLDER` says what plain decoding says."""
    from mmspec import cli

    folder = save_chat_model(tmp_path / "m")
    answers = []
    for drafter in ("none", str(folder)):
        options = ["--model", str(folder), "--drafter", drafter, "--max-new-tokens", "12", "--dtype", "fp32", "--json"]
        with pytest.raises(SystemExit) as done:
            cli.main(["ask", "hi there", *options])
        assert not done.value.code
        answers.append(json.loads(capsys.readouterr().out)["answer"])
    assert answers[0] == answers[1]
