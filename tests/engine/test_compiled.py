"""Compiled passes: the same tokens, no recompilation, and the decoder's own pass where there is no compiler."""

import copy
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tiny import drafter, llama, prompts
from torch._dynamo.utils import counters
from transformers import LlamaForCausalLM

from mmspec.drafters.dspark import DSparkDrafter
from mmspec.drafters.lookup import LookupDrafter
from mmspec.engine.compiled import padded_width
from mmspec.engine.loop import Stop, generate
from mmspec.engine.packed import PackedLinear, can_pack, pack_weights
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget


def tokens(target: CausalTarget, name: str, temperature: float, rows: int = 2) -> list[list[int]]:
    """What a drafter and a target say."""
    drafted = None if name == "none" else drafter(name, target)
    sampling = SamplingOptions(temperature=temperature)
    texts = [[1, 3, 4, 2], [1, 5, 2], [1, 2]][:rows]
    return generate(target, prompts(texts), rows, Stop(24), drafted, sampling).tokens


def test_equal_tokens_without_recompilation() -> None:
    """Greedy and at T = 1, alone and drafted, in float64; graphs are made once a width."""
    plain, target = CausalTarget(llama()), CausalTarget(llama())
    target.compiled = True
    torch._dynamo.reset()
    counters.clear()
    for temperature in (0.0, 1.0):
        for name in ("none", "jacobi"):
            assert tokens(target, name, temperature) == tokens(plain, name, temperature), (name, temperature)
    assert target.passes is not None
    shapes = len(target.passes.graphs.made)
    assert 2 <= shapes <= 3
    assert counters["stats"]["unique_graphs"] == shapes
    before = dict(counters["stats"])
    tokens(target, "jacobi", 1.0)
    assert counters["stats"]["unique_graphs"] == before["unique_graphs"]


def test_drafters_that_read_layers() -> None:
    """Graphs give what entered layers."""
    plain, target = CausalTarget(llama()), CausalTarget(llama())
    target.compiled = True
    assert target.passes is not None
    torch._dynamo.reset()
    torch.manual_seed(0)
    block = DSparkDrafter.build(target, block=4, rank=4, feature_layers=(1, 2)).double().eval()
    lengths = []
    for one in (plain, target):
        found = generate(one, prompts([[1, 3, 4, 2]]), 1, Stop(24), block, SamplingOptions(temperature=1.0))
        lengths.append((found.tokens, found.stats.rounds))
    assert lengths[0] == lengths[1] and not target.passes.graphs.failed
    assert {shape[-2:] for shape in target.passes.graphs.made} == {(1, 2)}


def test_levels_of_a_drafter() -> None:
    """A drafter with a layer for every level has one graph a width, and drafts the same trees; nothing is compiled
    again. In a process of its own, since shape checks cannot be compiled.
    """
    tests = Path(__file__).parent.parent
    paths = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compiled_levels.py"))],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] and not found["failed"] and not found["recompiled"] and not found["copied"]
    assert [shape[:2] for shape in found["made"]] == [[1, 4]]


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU does not multiply bfloat16")
def test_graphs_call_packed_layers() -> None:
    """Compiling leaves them packed, and a layer that is unpacked afterwards is followed."""
    model = copy.deepcopy(llama()).bfloat16()
    target = CausalTarget(model)
    count = pack_weights(target.decoder)
    plain = tokens(target, "none", 1.0, rows=1)
    target.compiled = True
    for _ in range(2):
        assert tokens(target, "none", 1.0, rows=1) == plain
        assert sum(isinstance(module, PackedLinear) for module in model.modules()) == count > 0
    assert target.passes is not None and len(target.passes.graphs.made) == 1 and not target.passes.graphs.failed
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.weight.mul_(0.5)
    other = CausalTarget(copy.deepcopy(model))
    assert tokens(target, "none", 1.0, rows=1) == tokens(other, "none", 1.0, rows=1)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning, and the decoder's own pass."""
    target = CausalTarget(llama())
    target.compiled = True
    assert target.passes is not None

    def broken(function: object) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(target.passes.graphs, "_compile", broken)
    with pytest.warns(UserWarning, match="runs uncompiled.*no C"):
        assert tokens(target, "jacobi", 1.0) == tokens(CausalTarget(llama()), "jacobi", 1.0)


def test_a_graph_that_errs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    target = CausalTarget(llama())
    target.compiled = True
    assert target.passes is not None
    own = target.passes._pass

    def graph(*args: object) -> tuple[torch.Tensor, ...]:
        return tuple(part + 1 for part in own(*args))

    monkeypatch.setattr(target.passes.graphs, "_compile", lambda function: graph)
    with pytest.warns(UserWarning, match="differ by"):
        assert tokens(target, "jacobi", 1.0) == tokens(CausalTarget(llama()), "jacobi", 1.0)


def test_a_graph_that_writes_no_keys_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the decoder's own pass wrote into the same slots just before does not hide it."""
    target = CausalTarget(llama())
    target.compiled = True
    assert target.passes is not None
    own = target.passes._pass

    def graph(inputs, masks, position_ids, slots, entries, numbers) -> tuple[torch.Tensor, ...]:
        copies = [(keys.clone(), values.clone()) for keys, values in entries]
        return own(inputs, masks, position_ids, slots, copies, numbers)

    monkeypatch.setattr(target.passes.graphs, "_compile", lambda function: graph)
    with pytest.warns(UserWarning, match="differ by"):
        assert tokens(target, "jacobi", 1.0) == tokens(CausalTarget(llama()), "jacobi", 1.0)


def test_limits_of_errors_are_those_of_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of the spread is rounding in float32, and not in float64."""
    for dtype, fails in ((torch.float64, True), (torch.float32, False)):
        target = CausalTarget(llama(dtype=dtype))
        target.compiled = True
        assert target.passes is not None
        own = target.passes._pass

        def graph(*args: object, own=own) -> tuple[torch.Tensor, ...]:
            return tuple(part + 1e-3 * part.std() for part in own(*args))

        monkeypatch.setattr(target.passes.graphs, "_compile", lambda function, graph=graph: graph)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokens(target, "none", 1.0)
        assert target.passes.graphs.failed == fails and target.compiled != fails


def test_more_slots_than_ever() -> None:
    """A cache that is wider than those before is probed uncompiled, and then read by graphs."""
    config = copy.deepcopy(llama().config)
    config.max_position_embeddings = 2048
    with torch.random.fork_rng():
        model = LlamaForCausalLM(config).double().eval()
    target, sampling = CausalTarget(model), SamplingOptions(0.0)
    target.compiled = True
    assert target.passes is not None
    wanted = generate(CausalTarget(model), prompts([[1, 3]]), 1, Stop(520), None, sampling).tokens
    assert generate(target, prompts([[1, 3]]), 1, Stop(520), LookupDrafter(), sampling).tokens == wanted
    assert target.passes.graphs.made and target.compiled


def test_widths() -> None:
    assert [padded_width(nodes) for nodes in (1, 2, 4, 5, 16, 17, 64, 65)] == [1, 4, 4, 8, 16, 32, 64, 65]


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target = CausalTarget(llama())
    monkeypatch.setattr(target.model, "hf_device_map", {"": "cpu"}, raising=False)
    with pytest.raises(MmspecError, match="cannot be compiled"):
        target.compiled = True
