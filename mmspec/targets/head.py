"""The output head of a target: logits in float32 or wider, from one copy of the weights."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from mmspec.errors import MmspecError

# Passes are padded to at least this many nodes. Matrix libraries sum one to three rows in another order than four and
# more. From four on, the linear layers of a pass agree bit for bit for every width on the CPU in bfloat16, and up to 15
# rows in float32 (docs/how-it-works.md has the figures).
MIN_QUERY_LEN = 4

# Rows of a 16-bit head that are widened at a time, where nothing multiplies them as they are.
CHUNK = 256

Projection = Callable[[Float[Tensor, "node width"]], Float[Tensor, "node vocab"]]


class OutputHead(nn.Module):
    """Logits of hidden states: float64 for a float64 head, else float32, with products summed in that precision.

    `weight` is the model's own tensor or rows of it, in the model's dtype; no copy of it in float32 is kept. Products
    get the `bias`, are multiplied by `scale`, and kept within `softcap` by tanh, as far as the model has these.
    bfloat16 logits tie too often for samples to be reproducible. A 16-bit head is multiplied

    - by FBGEMM on x86 CPUs, from a 16-bit copy in its own layout: several times as fast, and the same bits for a node
      however many there are. It reads bfloat16 as float16, which is exact down to 2^-17 and off by at most 2^-25 below;
    - on CUDA with 16-bit operands and float32 sums and results;
    - elsewhere in chunks that are widened one after the other.

    None of these has a gradient: see `differentiable`. Later changes of the weights in place are not followed by the
    first.
    """

    def __init__(
        self,
        weight: Float[Tensor, "vocab width"],
        bias: Float[Tensor, "vocab"] | None = None,
        scale: float = 1.0,
        softcap: float | None = None,
    ):
        super().__init__()
        self.weight, self.bias, self.scale, self.softcap = weight.detach(), bias, scale, softcap
        self._project = self._projection()

    def forward(self, hidden: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape vocab"]:
        return self.finish(self._project(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:-1], -1))

    def differentiable(
        self, hidden: Float[Tensor, "*shape width"], tokens: Int[Tensor, "drafted"] | None = None
    ) -> Float[Tensor, "*shape drafted"]:
        """Logits with a gradient, in the dtype of `hidden` or of autocast; of some `tokens` alone if they are given."""
        weight = self.weight if tokens is None else self.weight[tokens]
        if not torch.is_autocast_enabled(hidden.device.type):
            weight = weight.to(hidden.dtype)
        return self.finish(F.linear(hidden, weight), slice(None) if tokens is None else tokens)

    def finish(self, products: Tensor, tokens: Tensor | slice = slice(None)) -> Tensor:
        """Logits of products with the rows of some tokens: bias, scale and soft cap."""
        logits = products
        if self.bias is not None:
            logits = logits + self.bias.detach()[tokens].to(logits.dtype)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @property
    def width(self) -> int:
        """The width of hidden states."""
        return self.weight.shape[1]

    def _projection(self) -> Projection:
        weight = self.weight
        if weight.dtype in (torch.float64, torch.float32):
            return _padded(lambda nodes: F.linear(nodes.to(weight.dtype), weight))
        if weight.device.type == "cpu" and torch.backends.quantized.engine in ("x86", "fbgemm"):
            packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)
            # With AVX2 alone, one row and two are summed in another order than more.
            return _padded(lambda nodes: torch.ops.quantized.linear_dynamic_fp16(nodes.float(), packed))
        if weight.device.type == "cuda":
            return _padded(lambda nodes: torch.mm(nodes.to(weight.dtype), weight.T, out_dtype=torch.float32))
        return _padded(
            lambda nodes: torch.cat([F.linear(nodes.float(), part.float()) for part in weight.split(CHUNK)], 1)
        )


@torch.inference_mode()
def finish_of(model: PreTrainedModel, decoder: PreTrainedModel) -> tuple[float, float | None]:
    """The scale and the soft cap of a model's logits.

    Some models that are built around a text model do not finish logits as the text model alone would (LLaVA on
    Gemma 2, Aya Vision): the logits of one token tell.
    """
    config = model.config.get_text_config()
    scale, softcap = scale_of(config), getattr(config, "final_logit_softcapping", None)
    if config is model.config or (scale, softcap) == (1.0, None):
        return scale, softcap
    seen: list[Tensor] = []
    hook = decoder.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    try:
        logits = model(input_ids=torch.tensor([[2]], device=model.device), use_cache=False).logits.double()
    except Exception:  # the probe meets it too, and says what it is
        return scale, softcap
    finally:
        hook.remove()
    bare = model.get_output_embeddings()(seen[0]).double()
    finished = bare * scale if softcap is None else softcap * torch.tanh(bare * scale / softcap)
    applied = (logits - finished).abs().max() <= (logits - bare).abs().max()
    return (scale, softcap) if applied else (1.0, None)


class LayeredHead(nn.Module):
    """A head of two layers with a function between them, both in float32 or wider.

    It has no `weight` that maps hidden states to logits, and drafters that need one are refused.
    """

    def __init__(self, first: nn.Linear, between: Projection, last: nn.Linear):
        super().__init__()
        self.first, self.between = OutputHead(first.weight, first.bias), between
        self.last = OutputHead(last.weight, last.bias)

    def forward(self, hidden: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape vocab"]:
        return self.last(self.between(self.first(hidden)))

    def differentiable(
        self, hidden: Float[Tensor, "*shape width"], tokens: Int[Tensor, "drafted"] | None = None
    ) -> Float[Tensor, "*shape drafted"]:
        """See `OutputHead`."""
        return self.last.differentiable(self.between(self.first.differentiable(hidden)), tokens)

    def finish(self, products: Tensor, tokens: Tensor | slice = slice(None)) -> Tensor:
        """See `OutputHead`."""
        return self.last.finish(products, tokens)

    @property
    def width(self) -> int:
        """The width of hidden states."""
        return self.first.width

    @property
    def weight(self) -> Tensor:
        raise MmspecError(
            "this model's output head has two layers, and the drafter needs one of a single matrix: use none, jacobi "
            "or lookup"
        )


def scale_of(config: PreTrainedConfig) -> float:
    """What a family multiplies its logits by, read from its text configuration."""
    if getattr(config, "logits_scaling", None):  # Granite
        return 1 / config.logits_scaling
    if getattr(config, "dim_model_base", None):  # MiniCPM
        return config.dim_model_base / config.hidden_size
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    return 1.0


def _padded(project: Projection) -> Projection:
    """A projection of at least `MIN_QUERY_LEN` nodes."""

    def run(nodes: Float[Tensor, "node width"]) -> Float[Tensor, "node vocab"]:
        if len(nodes) >= MIN_QUERY_LEN:
            return project(nodes)
        return project(F.pad(nodes, (0, 0, 0, MIN_QUERY_LEN - len(nodes))))[: len(nodes)]

    return run
