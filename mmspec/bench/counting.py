"""What does not depend on the clock: operations and host reads of a round by phase, accepted lengths by nodes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmspec.drafters.base import Drafter
from mmspec.engine.accept import Committed
from mmspec.engine.loop import Batch, Stop, generate
from mmspec.engine.rows import Rows
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import Output
from mmspec.engine.tree import DraftTree
from mmspec.targets.base import Prompts, Target
from mmspec.targets.causal import CausalTarget

# The rest is acceptance, the commit, and what lies between.
PHASES = ("draft", "target", "rest")

# Methods of a tensor that wait for its values. What they dispatch differs between devices, so the calls are counted.
CALLS = frozenset(
    ("tolist", "item", "numpy", "cpu", "__array__", "__int__", "__float__", "__complex__", "__bool__", "__index__")
)

# Operations that torch does not call views, but that neither compute nor copy.
LAUNCHING_NOTHING = frozenset((torch.ops.aten.detach_.default, torch.ops.aten._unsafe_view.default))

# How many rounds are counted after the prefill.
ROUNDS = 8


class Counting:
    """A context that counts operations that are dispatched, and reads that make the host wait for a tensor's values,
    in `operations` and `reads` by `phase`.

    Operations are those that compute or copy: views launch nothing, and what torch composes of other operations is
    counted as these. Reads are calls of `CALLS`, copies from a device to the host, and operations whose output's shape
    or value depends on values (`nonzero`, `unique`, `equal`, indexing by a mask); each is one read, however it is
    carried out.
    """

    def __init__(self) -> None:
        self.operations, self.reads = dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)
        self.phase = "rest"
        self._within_call = False

    def __enter__(self) -> "Counting":
        self._modes = ExitStack()
        self._modes.enter_context(_Operations(self))
        self._modes.enter_context(_Calls(self))
        return self

    def __exit__(self, *exception: object) -> None:
        self._modes.close()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count what follows as of this phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def call(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        """A read by one of `CALLS`; what it dispatches is no further one."""
        self.reads[self.phase] += 1
        self._within_call = True
        try:
            return function(*args, **kwargs)
        finally:
            self._within_call = False

    def dispatched(self, operation: OpOverload, args: tuple, result: object) -> None:
        """An operation has run."""
        self.operations[self.phase] += not (operation.is_view or operation in LAUNCHING_NOTHING)
        if not self._within_call and (waits_for_values(operation, args) or leaves_device(args, result)):
            self.reads[self.phase] += 1


def waits_for_values(operation: OpOverload, args: tuple) -> bool:
    """Whether the host must know values before it can go on."""
    if operation.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        masks = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return masks and not (len(args) > 2 and args[2].numel() == 1)  # a single value is filled in by the mask
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(operation.tags))


def leaves_device(args: tuple, result: object) -> bool:
    """Whether a tensor was copied from a device to the host."""
    if not isinstance(result, Tensor) or result.device.type != "cpu":
        return False
    return any(isinstance(value, Tensor) and value.device.type not in ("cpu", "meta") for value in args)


@cache
def is_composed(operation: OpOverload) -> bool:
    """Whether torch carries an operation out by others."""
    return operation._can_decompose()


class _Operations(TorchDispatchMode):
    def __init__(self, counting: Counting):
        super().__init__()
        self.counting = counting

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if is_composed(func):  # in inference mode they come here whole
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        self.counting.dispatched(func, args, result)
        return result


class _Calls(TorchFunctionMode):
    def __init__(self, counting: Counting):
        super().__init__()
        self.counting = counting

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__name__", "") in CALLS:
            return self.counting.call(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class CountedBatch(Batch):
    """A batch whose rounds are counted by phase."""

    def __init__(self, counting: Counting, *args: Any):
        super().__init__(*args)
        self.counting = counting

    def _draft(self, rows: Rows) -> DraftTree:
        with self.counting.during("draft"):
            return super()._draft(rows)

    def _verify(self, rows: Rows, tree: DraftTree) -> Output:
        with self.counting.during("target"):
            return super()._verify(rows, tree)

    def _observe(self, rows: Rows, tree: DraftTree, path: Committed, gumbel_scores: Tensor) -> None:
        with self.counting.during("draft"):
            super()._observe(rows, tree, path, gumbel_scores)


@contextmanager
def uncompiled(target: Target) -> Iterator[None]:
    """Passes of the target run as they do without graphs, which are kept for later."""
    if not target.compiled:
        yield
        return
    assert isinstance(target, CausalTarget), "no other kind of target compiles its passes"
    passes, target.passes = target.passes, None
    try:
        yield
    finally:
        target.passes = passes


def count_rounds(
    target: Target,
    prompts: Prompts,
    stop: Stop,
    drafter: Drafter,
    sampling: SamplingOptions = SamplingOptions(),
    rule: str = "exact",
    seed: int = 0,
    rounds: int = ROUNDS,
) -> list[Counting]:
    """What each of the first `rounds` rounds after the prefill takes, or of as many as there are; a drafter's
    `observe` belongs to its draft. Passes are counted uncompiled.
    """
    counts: list[Counting] = []
    rows = len(prompts.conditional)
    with uncompiled(target):
        batch = CountedBatch(Counting(), target, drafter, sampling, rule)
        batch.join(prompts, [seed + row for row in range(rows)], stop)
        while any(batch.running) and len(counts) < rounds:
            with Counting() as batch.counting:
                batch.round()
            counts.append(batch.counting)
    return counts


def mean_counts(counts: Sequence[Counting]) -> dict[str, dict[str, float] | None]:
    """Fields of a row: operations and reads of a round by phase; None where there was no round."""
    return {
        name: {phase: sum(getattr(each, name)[phase] for each in counts) / len(counts) for phase in PHASES}
        if counts
        else None
        for name in ("operations", "reads")
    }


@contextmanager
def fixed_nodes(drafter: Drafter, nodes: int) -> Iterator[None]:
    """The drafter proposes so many nodes a round, as far as its trees have them, whatever passes cost."""
    before = drafter.nodes, drafter.max_nodes, drafter.cost
    drafter.nodes, drafter.max_nodes, drafter.cost = nodes, nodes, None
    try:
        yield
    finally:
        drafter.nodes, drafter.max_nodes, drafter.cost = before


def length_by_nodes(
    target: Target,
    jobs: Sequence[tuple[Prompts, Stop]],
    drafter: Drafter,
    numbers: Sequence[int],
    sampling: SamplingOptions = SamplingOptions(),
    rule: str = "exact",
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """For each number of draft nodes a round, `mean_acceptance_length` over all jobs and the `nodes` that were there.

    `jobs` are decoded one after the other, with a seed for each row, by a drafter that begins with what it was trained
    on alone. A drafter's tree may have fewer nodes than that:
    where its heads end, where nothing was found to copy, and before the end of a row.
    """
    lengths = {}
    for number in numbers:
        parts, first = [], seed
        drafter.forget()
        with fixed_nodes(drafter, number), uncompiled(target):
            for prompts, stop in jobs:
                rows = len(prompts.conditional)
                parts.append(
                    generate(target, prompts, rows, stop, drafter, sampling=sampling, seeds=first, rule=rule).stats
                )
                first += rows
        runs = [run for part in parts for row in part.runs for run in row]
        passes = sum(part.rounds - 1 for part in parts)  # without the prefill, which verifies the root alone
        nodes = sum(part.nodes - part.rounds for part in parts)
        lengths[str(number)] = {"mean_acceptance_length": sum(runs) / len(runs), "nodes": nodes / max(1, passes)}
    return lengths
