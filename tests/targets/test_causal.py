"""Targets: plain decoding in our loop is transformers' own, for any family that we take."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers as hub
from text_families import text_family
from tiny import TEXTS, drafter, llama, plain, prompts, text_target
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.generation import logits_process as hf

from mmspec.drafters.jacobi import JacobiDrafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget, Prompts
from mmspec.targets.head import OutputHead

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": 6},
    "Gemma2": {"head_dim": 8, "sliding_window": 6, "attn_implementation": "eager", "final_logit_softcapping": 1.0},
    "Granite": {"logits_scaling": 4.0},
    "Cohere": {"logit_scale": 0.25},
    "Phi": {},
    "GPTNeoX": {},
    "Olmo2": {},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


def tiny_family(name: str) -> hub.PreTrainedModel:
    """A random model of one transformers family, biases included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (
            getattr(hub, f"{name}ForCausalLM")(getattr(hub, f"{name}Config")(**SMALL, **FAMILIES[name])).double().eval()
        )
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.5)
    return model


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("penalty", [1.0, 1.8])
def test_greedy_equals_transformers_generate(text: list[int], penalty: float) -> None:
    """Greedy decoding in our loop is `transformers.generate`, with the repetition penalty too, drafted or not."""
    model, length = llama(), 25
    wanted = model.generate(
        torch.tensor([text]), do_sample=False, max_new_tokens=length, repetition_penalty=penalty, pad_token_id=0
    )[0, len(text) :].tolist()
    sampling = SamplingOptions(
        0, logits_processor=[hf.RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1.0 else []
    )
    for name in ("none", "jacobi", "lookup"):
        found = generate(
            text_target(), prompts([text]), 1, Stop(length), drafter(name, text_target()), sampling=sampling
        )
        assert found.tokens == [wanted]


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    """The laws of a family's model are its own (biases, scales, caps and windows of the model included)."""
    model = tiny_family(name)
    logits: list[torch.Tensor] = []

    def record(state, tree, gumbel_scores, accepted) -> None:
        logits.append(gumbel_scores[0, 0].clone())

    found = generate(
        CausalTarget(model), prompts([[1, 3, 4]]), 1, Stop(20), sampling=SamplingOptions(0), on_accept=record
    )
    with torch.inference_mode():
        whole = model(torch.tensor([[1, 3, 4, *found.tokens[0]]])).logits[0, 2:-1]
    torch.testing.assert_close(torch.stack(logits).double(), whole.double(), rtol=1e-6, atol=1e-6)


def test_streams_must_share_their_last_token() -> None:
    """Both streams read the same tree, whose root is the prompt's last token: prompts that end differently are
    refused.
    """
    with pytest.raises(MmspecError, match="last token"):
        text_target().prefill(Prompts([[1, 2]], [[1, 3]], 3.0), 5)


def test_guidance_mixes_before_anything_else() -> None:
    """Guided logits are unconditional + guidance (conditional - unconditional) of the bare model."""
    seen: list[torch.Tensor] = []
    generate(
        text_target(),
        prompts([[1, 5, 2]], 3.0),
        1,
        Stop(1),
        sampling=SamplingOptions(0),
        on_accept=lambda state, tree, gumbel_scores, accepted: seen.append(gumbel_scores.clone()),
    )
    with torch.inference_mode():
        conditional, unconditional = (llama()(torch.tensor([ids])).logits[0, -1] for ids in ([1, 5, 2], [1, 2]))
    torch.testing.assert_close(seen[0][0, 0], unconditional + 3.0 * (conditional - unconditional), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_of_any_number_of_nodes(dtype: torch.dtype) -> None:
    """Logits are those of plain products, in float32 or wider; of a head of 16 bits on x86 the same bits for any number
    of nodes.
    """
    chance = torch.Generator().manual_seed(0)
    head, nodes = torch.randn(300, 48, generator=chance).to(dtype), torch.randn(33, 48, generator=chance).to(dtype)
    project = OutputHead(head)
    whole = project(nodes)
    assert whole.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(whole.double(), nodes.double() @ head.double().T, rtol=1e-5, atol=1e-5)
    if dtype.itemsize == 2 and torch.backends.quantized.engine in ("x86", "fbgemm"):
        assert all(torch.equal(project(nodes[:count]), whole[:count]) for count in (1, 2, 3, 4, 5, 8, 17))


def test_rows_ahead_stay_within_the_table() -> None:
    """A drafter that looks beyond the last position, for a row that is ahead of the others, asks for no position that
    the model lacks.
    """
    model = tiny_family("OPT")
    target = CausalTarget(model)
    length = model.config.max_position_embeddings - 4
    found = generate(target, prompts([[1, 2], [1, 3, 2]]), 2, Stop(length), drafter("jacobi", target), seeds=5)
    alone = [
        generate(target, prompts([text]), 1, Stop(length), seeds=5 + row).tokens[0]
        for row, text in enumerate([[1, 2], [1, 3, 2]])
    ]
    assert found.tokens == alone


def refused(**config) -> hub.LlamaForCausalLM:
    return hub.LlamaForCausalLM(hub.LlamaConfig(**SMALL, **config))


def test_what_the_tree_cannot_serve_is_refused() -> None:
    """Positions that depend on the whole sequence, and more tokens than the head has."""
    model = refused(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.raises(MmspecError, match="positions that depend on the whole sequence"):
        CausalTarget(model)
    with pytest.raises(
        MmspecError,
        match="^vocabulary has 10 ids from 35 to 44, but the model's output head has 40 rows: give at least one id, ",
    ):
        CausalTarget(llama(), range(35, 45))


@pytest.mark.parametrize("numbers", [(), (1, 3)])
def test_states_of_prompts_where_layers_share_keys(numbers: tuple[int, ...]) -> None:
    """Gemma 4's later layers read the last position alone if no others are asked for: a drafter gets those of all."""
    target, text = CausalTarget(text_family("Gemma 4")), [1, 3, 4, 2, 7]
    hidden = target.prefill(prompts([text]), 80, numbers or True).prompt_hidden[0][1]
    with torch.inference_mode():
        states = target.model.model(torch.tensor([text]), output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(hidden, torch.cat([states[i][0, :-1] for i in numbers or (-1,)], -1))


def test_recurrent_models_are_refused() -> None:
    """A model that does not use the cache would read the tree alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hub.RwkvForCausalLM(
            hub.RwkvConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
        )
    with pytest.raises(MmspecError, match="does not use the cache"):
        generate(CausalTarget(model), prompts([[1, 2]]), 1, Stop(3))


def test_unequal_streams_are_refused() -> None:
    with pytest.raises(MmspecError, match="^2 prompts have 1 unconditional twins: give one each$"):
        Prompts([[1, 2], [1, 2]], [[1, 2]], 2.0)


@pytest.mark.parametrize("length", [600, 1500])
def test_long_prompts_need_no_mask(length: int) -> None:
    """Nothing of length times length is made of a causal prompt, whose attention is computed without a mask."""

    class LargeTensors(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.made: list[str] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.numel() >= length * length:
                self.made.append(str(function))
            return result

    model = llama(dtype=torch.float32)
    model.config.max_position_embeddings = 2048
    target = CausalTarget(model, check=False)
    with LargeTensors() as large:
        target.prefill(Prompts([[3 + i % 20 for i in range(length)]]), 80)
    assert not large.made
    with LargeTensors() as large:  # the negative control
        torch.ones(length, length)
    assert large.made


def test_threads_share_a_target() -> None:
    """What one thread's prompt gives its decoder is not taken for another's."""
    target = text_target()
    texts = [[1, 3, 4, 2], [1, 5, 2], [1, 2]]
    wanted = plain(target, 16, seed=3, texts=texts)

    def generated(row: int) -> list[int]:
        return generate(target, prompts([texts[row]]), 1, Stop(16), JacobiDrafter(), seeds=[3 + row]).tokens[0]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(generated, [0, 1, 2] * 8)) == wanted * 8
