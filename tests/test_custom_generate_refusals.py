"""What `mmspec.speculate` follows or refuses: criteria, positions, inputs of every token, adapters, changed models."""

from copy import deepcopy

import pytest
import torch
import transformers as hub
from tiny import llama
from transformers.generation import stopping_criteria as criteria

import mmspec
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget

IDS = torch.tensor([[5, 9, 11, 7, 5, 9]])
SHAPE = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)


def said(model: hub.PreTrainedModel, ids: torch.Tensor = IDS, **options) -> list[list[int]]:
    options = dict(max_new_tokens=16, do_sample=False, pad_token_id=0, eos_token_id=None) | options
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, ids.shape[1] :].tolist()


def ours(model: hub.PreTrainedModel, ids: torch.Tensor = IDS, **options) -> list[list[int]]:
    return said(model, ids, custom_generate=mmspec.speculate("jacobi"), **options)


@pytest.fixture(scope="module")
def model() -> hub.PreTrainedModel:
    return llama(40, torch.float64)


def test_criteria_of_ones_own(model: hub.PreTrainedModel) -> None:
    """A length and an end token may come as criteria, too."""
    plain = said(model)[0]
    ends = criteria.EosTokenCriteria(plain[7])
    for own in (criteria.MaxLengthCriteria(11), ends):
        given = {"stopping_criteria": hub.StoppingCriteriaList([own])}
        assert ours(model, **given) == said(model, **given)
        assert len(ours(model, **given)[0]) < 16
    late = hub.StoppingCriteriaList([criteria.MaxTimeCriteria(60.0)])
    with pytest.raises(MmspecError, match="rows that have met a stopping criterion go on in generate"):
        ours(model, IDS.repeat(2, 1), stopping_criteria=late)
    assert ours(model, IDS.repeat(2, 1), stopping_criteria=late, eos_token_id=39) == [plain] * 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"position_ids": torch.arange(6)[None] + 9}, "leave position_ids out"),
        ({"constraints": ["x"]}, "takes no constraints"),
        ({"force_words_ids": [[3]]}, "takes no force_words_ids"),
    ],
)
def test_options(model: hub.PreTrainedModel, options: dict, text: str) -> None:
    with pytest.raises((MmspecError, ValueError), match=text) as error:
        ours(model, **options)
    assert isinstance(error.value, MmspecError) or "custom_generate" not in str(error.value)


def test_streamers_of_several_rows(model: hub.PreTrainedModel) -> None:
    class Streamer:
        def put(self, value: torch.Tensor) -> None: ...
        def end(self) -> None: ...

    with pytest.raises(MmspecError, match="streams one row"):
        ours(model, IDS.repeat(2, 1), streamer=Streamer())


def test_processors_of_two_batches(model: hub.PreTrainedModel) -> None:
    guidance = hub.generation.ClassifierFreeGuidanceLogitsProcessor(2.0)
    with pytest.raises(MmspecError, match="mixes the rows of two batches"):
        ours(model, logits_processor=hub.LogitsProcessorList([guidance]))


def test_inputs_of_every_token() -> None:
    """GPT-2 would read token types with what is generated as well."""
    gpt = hub.GPT2LMHeadModel(hub.GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=128)).eval()
    with pytest.raises(MmspecError, match="token_type_ids would be read with the prompt alone"):
        ours(gpt, token_type_ids=torch.ones_like(IDS))


def test_adapters() -> None:
    """Prompt tuning adds to the prompt what would be left out; an adapter of the head is a change of the head."""
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(
        deepcopy(llama(40, torch.float32)), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )
    with pytest.raises(MmspecError, match="prepare_inputs_for_generation was replaced"):
        ours(tuned)
    adapted = peft.get_peft_model(
        deepcopy(llama(40, torch.float64)), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head", "q_proj"])
    ).double()
    assert ours(adapted) == said(adapted)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 1)
    with pytest.raises(MmspecError, match="does not give its own logits"):
        ours(adapted)


def test_a_changed_configuration_is_seen() -> None:
    config = hub.GraniteConfig(**SHAPE, num_key_value_heads=2, logits_scaling=1.0)
    granite = hub.GraniteForCausalLM(config).double().eval()
    penalty = {"repetition_penalty": 1.5}
    ours(granite, **penalty)
    granite.config.logits_scaling = granite.logits_scaling = 16.0
    assert ours(granite, **penalty) == said(granite, **penalty)


def test_ids_beyond_the_embeddings(model: hub.PreTrainedModel) -> None:
    with pytest.raises(MmspecError, match="has the id 77, and the model has embeddings of 40"):
        mmspec.generate(CausalTarget(model), mmspec.targets.base.Prompts([[5, 77]]), 1, mmspec.Stop(3))


def test_attention_temperature() -> None:
    """Llama 4 scales queries by what its cache holds, which is not a row's own length: positions end before that."""
    config = hub.Llama4TextConfig(
        **SHAPE,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=2,
        no_rope_layers=[1, 0],
        attn_temperature_tuning=True,
        floor_scale=200,
    )
    target = CausalTarget(hub.Llama4ForCausalLM(config).double().eval())
    assert target.max_positions < 200
    long = mmspec.targets.base.Prompts([[5] * 180])
    with pytest.raises(MmspecError, match="exceed the model's"):
        mmspec.generate(target, long, 1, mmspec.Stop(8))
