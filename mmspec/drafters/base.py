"""What the loop asks of a drafter."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mmspec.drafters.card import drafter_card
from mmspec.drafters.examples import DepthPredictions, Example
from mmspec.drafters.layouts import Files
from mmspec.drafters.release import Release, Verifier
from mmspec.engine.accept import Committed
from mmspec.engine.cost import Cost
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import MAX_TREE_NODES, Candidates, DraftTree
from mmspec.errors import MmspecError, unknown
from mmspec.targets.base import Target


class Drafter:
    """The cheap guesser. One instance serves one generation at a time; `start` begins the next.

    `max_nodes` is the largest number of draft tokens in a tree; `needs_features` asks the state to keep features, the
    target's last hidden states, and `feature_layers` for those that enter its layers of these numbers instead.
    `nodes` fixes how many draft tokens of a sorted tree are verified; if it is None, `cost`, what passes take here,
    decides, and 16 are verified where that is None too.
    """

    name: str = "drafter"
    max_nodes: int = MAX_TREE_NODES
    needs_features: bool = False
    feature_layers: tuple[int, ...] = ()
    nodes: int | None = None
    cost: Cost | None = None

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        """A generation begins. `needs_draft_probs` asks for sampled candidates and the distributions they come from."""
        self.target, self.sampling, self.needs_draft_probs = target, sampling.without_processors(), needs_draft_probs

    def change_rows(self, state: State, previous: list[int | None]) -> None:
        """Rows have left, joined or moved: row i was row `previous[i]`, or is new if that is None.

        Unless a drafter can carry over what it knows, it starts anew.
        """
        self.start(self.target, state, self.sampling, self.needs_draft_probs)

    def forget(self) -> None:
        """Drop what was learnt from earlier generations, if anything was."""

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        """A tree of at most `limit` levels under the root. Reads the device never, or once to search it on the host."""
        raise MmspecError(f"drafter {self.name!r} drafts nothing: it has no method draft")

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        """What was committed, and log p + g of every node (`row node vocab`)."""


class TrainedDrafter(nn.Module, PyTorchModelHubMixin, Drafter, library_name="mmspec"):
    """What drafters with weights share.

    `coupled` ranks candidates by log q + lambda g, with the noise that the target's sample will use, else by q alone. A
    tree grows from `beam` nodes a level and `ranks` children each. `widths` are the children per level of trees that
    are sampled for `rejection`; with `paths` it is so many paths by stochastic beam search instead, by drafters that
    read their path. `coupling[depth]` (lambda) and `beta[depth]` are calibrated: softmax(beta T (log q +
    lambda g)) is the probability that a candidate is the target's sample at temperature T. A drafter errs by so many
    nats of its logits, T log q, whatever the temperature. lambda is 1 if q is the target's p, and 0 if the target is
    certain of a token that the drafter does not know: the noise then decides nothing.
    """

    needs_features = True
    # What `config.json` calls this class: its name, unless that is another's.
    kind: ClassVar[str] = ""
    # The public format that `to_released` writes, if there is one.
    format: ClassVar[str] = ""

    def __init__(
        self, target: str, depth: int, beta: list[float] | None, coupling: list[float] | None, beam: int, ranks: int
    ):
        super().__init__()
        self.target_hash = target
        self.beta, self.coupling = beta or [1.0] * depth, coupling or [1.0] * depth
        self.greedy: list[float] = []
        self.coupled, self.beam, self.ranks = True, beam, ranks
        self.widths, self.paths = [3, 2, *[1] * depth], 0

    def sharpen(
        self, log_q: Float[Tensor, "*row node vocab"], noise: Float[Tensor, "*row #node vocab"], depth: int | slice
    ) -> Float[Tensor, "*row node vocab"]:
        """beta T (log q + lambda g), for nodes of one depth, or for one node of each depth of a slice."""
        coupling, beta = (log_q.new_tensor(each[depth]).unsqueeze(-1) for each in (self.coupling, self.beta))
        coupled = torch.addcmul(log_q, coupling, noise.to(log_q.dtype))
        return coupled * (beta * self.sampling.temperature)

    def candidates(self, scores: Float[Tensor, "row beam vocab"]) -> Candidates:
        """The best children of each node, and their probabilities: the softmax of `scores`."""
        best, children = scores.topk(min(self.ranks, scores.shape[2]), dim=2)
        return Candidates(children, (best - scores.logsumexp(2, keepdim=True)).exp().float())

    # Training: whether sequences come with their prompts, whether those of a batch have similar lengths, whether greedy
    # sequences are calibrated for, options of `loss`, and what `mmspec train` does where nothing else is said.
    needs_prompt: ClassVar[bool] = False
    similar_lengths: ClassVar[bool] = False
    calibrates_greedy: ClassVar[bool] = False
    loss_options: ClassVar[tuple[str, ...]] = ()
    recipe: ClassVar[dict[str, float]] = {"steps": 1000, "batch": 4, "lr": 1e-3, "muon_lr": 3e-3}

    @classmethod
    def layers_read(cls, target: Target) -> tuple[int, ...]:
        """The layers whose inputs a drafter of this kind reads when it is built for a target; none if it reads the last
        hidden states.
        """
        return ()

    @classmethod
    def build(cls, target: Target, **options: Any) -> "TrainedDrafter":
        """An untrained drafter for a target; `options` are those of the constructor that the target does not fix."""
        return cls(**options, target=target.weights_hash)

    def load_initial(self, weights: dict[str, Tensor]) -> None:
        """Begin with weights that were trained with the target."""
        raise MmspecError(
            f"a drafter of kind {self.name!r} cannot begin with weights that were trained with the target"
        )

    def loss(self, target: Target, examples: Sequence[Example], **options: Any) -> dict[str, Tensor]:
        """Named terms of a batch, of which "loss" is minimised; `options` are `loss_options` of the recipe."""
        raise MmspecError(f"a drafter of kind {self.name!r} has no loss: it cannot be trained")

    def predictions(self, target: Target, example: Example) -> list[DepthPredictions]:
        """What the drafter predicts at each depth along a sequence, for calibration."""
        raise MmspecError(f"a drafter of kind {self.name!r} has no predictions: it cannot be calibrated")

    def drafted_tokens(self, target: Target) -> Tensor | None:
        """The tokens that are drafted from, None for all."""
        return None

    def calibrated(self, accuracies: list[list[float]]) -> None:
        """`accuracies[depth][rank]` is how often that candidate was right: to be kept by drafters that use it."""

    def constructor_arguments(self) -> dict:
        """The constructor's arguments as data, calibrated values included."""
        arguments: dict = dict(cast(dict, self._hub_mixin_config or {}))
        calibrated = {"beta", "coupling", *({"greedy", "accuracies"} & arguments.keys())}
        return arguments | {name: getattr(self, name) for name in calibrated} | {"target": self.target_hash}

    def save_pretrained(self, save_directory: str | Path, *, config: dict | None = None, **options: Any) -> str | None:  # type: ignore[override]
        """Write a folder that `--drafter` and `from_pretrained` load, whatever it is called: weights, `config.json`
        with the kind and the constructor's arguments (and what `config` adds), and a card unless there is one.

        `push_to_hub` pushes the same. `model_card_kwargs` are metadata of the card, such as base_model or license; the
        other options are those of huggingface_hub's `PyTorchModelHubMixin`.
        """
        about = {"kind": self.kind or self.name} | self.constructor_arguments() | (config or {})
        return super().save_pretrained(save_directory, config=about, **options)

    def generate_model_card(self, **metadata: Any) -> ModelCard:
        """A card that says what this drafter is, which target it is for, and how it is used."""
        return drafter_card(
            self.kind or self.name, self.target_hash, sum(weight.numel() for weight in self.parameters()), metadata
        )

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> "TrainedDrafter":
        options.pop("kind", None)  # reaches constructors that take any option
        with redirect_stdout(None):  # the mixin prints, and standard output may be a pipe for sound
            return super()._from_pretrained(strict=strict, **options)

    def configure(self, **options: object) -> "TrainedDrafter":
        """The drafter with attributes set. Raises MmspecError for one that it does not have."""
        attributes = vars(self).keys() - vars(nn.Module()).keys() | {"nodes", "cost"}
        for key, value in options.items():
            if key not in attributes:
                raise unknown(f"option of drafter {self.name!r}", key, attributes)
            setattr(self, key, value)
        return self

    @classmethod
    def from_released(cls, files: Files, target: Target) -> "TrainedDrafter":
        """For a target, from the files of a layout that others publish, for the classes that read one."""
        raise MmspecError(f"{files.folder} holds a drafter in a layout that {cls.__name__} does not read")

    def to_released(self, target: Target, verifier: Verifier) -> Release:
        """The files of a public layout, for the classes that have a `format`: what `from_released` reads."""
        raise MmspecError(f"{type(self).__name__} has no format that other engines read")

    def uncalibrated(self) -> list[str]:
        """What is lost with calibrated values, in words: public formats have no place for them."""
        calibrated = {value for values in (self.beta, self.coupling, self.greedy) for value in values} - {1.0}
        return ["the calibration (beta, coupling, greedy), by which mmspec ranks candidates"] * bool(calibrated)

    @classmethod
    def misfit(cls, files: Files, config: PreTrainedConfig) -> str:
        """Why files of a layout that others publish do not fit a target of this text configuration; "" where nothing
        speaks against it. No weights are read.
        """
        return ""
