"""Models that are not understood are refused with a figure or a reason; all that are understood pass."""

import pytest
import torch
import transformers as hub
from tiny import image_target, llama, text_target
from tiny_vlm import FAMILIES, model
from transformers import PreTrainedModel

from mmspec.errors import MmspecError
from mmspec.targets import probe as probing
from mmspec.targets.base import Grid
from mmspec.targets.causal import CausalTarget, Prompts
from mmspec.targets.image import ImageTarget
from mmspec.targets.registry import target_of
from mmspec.targets.vision_language import VisionLanguageTarget

SIZE = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights that are large enough for logits to depend on everything, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                std = 1.0 if "embed" in name or "wte" in name or "wpe" in name else 1.6 / weight.shape[-1] ** 0.5
                torch.nn.init.normal_(weight, std=std)
    return model.double().eval()


def image_gpt() -> PreTrainedModel:
    """Builds its own causal mask from the width of the cache."""
    config = hub.ImageGPTConfig(vocab_size=33, n_embd=32, n_layer=2, n_head=2, n_positions=256)
    return loud(hub.ImageGPTForCausalImageModeling(config))


def gpt_neo(window: int = 256) -> PreTrainedModel:
    """Has local layers that its configuration does not name as such."""
    return loud(
        hub.GPTNeoForCausalLM(
            hub.GPTNeoConfig(
                vocab_size=97,
                hidden_size=32,
                num_layers=2,
                num_heads=4,
                attention_types=[[["global", "local"], 1]],
                window_size=window,
            )
        )
    )


VQ = dict(embed_dim=8, latent_channels=8, base_channels=32, resolution=16, num_res_blocks=1, attn_resolutions=[])


def chameleon() -> PreTrainedModel:
    """Forbids image tokens in its own forward."""
    names = {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 40 + i for i in range(20)}
    vq = VQ | dict(num_embeddings=20, channel_multiplier=[1, 2])
    config = hub.ChameleonConfig(**SIZE, vocabulary_map={"<image>": 90, **names}, vq_config=vq)
    return loud(hub.ChameleonForConditionalGeneration(config))


def janus() -> PreTrainedModel:
    """Draws with another head and embedding than those of its text."""
    vision = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
    vision |= dict(projection_dim=32, num_image_tokens=16, mlp_ratio=2.0)
    vq = dict(embed_dim=8, num_embeddings=40, latent_channels=32, base_channels=32, channel_multiplier=[1, 1])
    vq |= dict(num_res_blocks=1, projection_dim=32, image_token_embed_dim=32, num_patches=4)
    text = SIZE | dict(model_type="llama", head_dim=8)
    config = hub.JanusConfig(vision_config=vision, text_config=text, vq_config=vq, image_token_id=90)
    return loud(hub.JanusForConditionalGeneration(config))


@pytest.mark.parametrize("build", [image_gpt, gpt_neo, chameleon])
def test_wrong_logits_are_refused_with_their_figure(build) -> None:
    """W1 to W3: masks made from the cache's width, hidden windows, logits that the forward changes."""
    text = (
        r" does not give its own logits with the tree cache: they differ by (\d\.\de[+-]\d\d|nan|inf) of their spread"
    )
    with pytest.raises(MmspecError, match=text):
        CausalTarget(build())


def test_a_head_that_draws_is_no_text_head() -> None:
    """W5: the text path of Janus is right, so no probe sees that pictures come from another head."""
    model = janus()
    probing.probe(CausalTarget(model, check=False))
    for build in (lambda: ImageTarget(model, range(40), Grid(4, 4)), lambda: CausalTarget(model)):
        with pytest.raises(MmspecError, match="JanusForConditionalGeneration is no causal language model"):
            build()


def test_a_wider_cache_is_probed_when_it_is_needed() -> None:
    """W2 with a window wider than the first probe's cache: right for few tokens, refused for many."""
    target = CausalTarget(gpt_neo(window=600))
    target.prefill(Prompts([[1, 2, 3]]), 100)
    with pytest.raises(MmspecError, match="with 1024 slots"):
        target.prefill(Prompts([[1, 2, 3]]), 700)


def test_the_probe_can_be_left_out() -> None:
    assert CausalTarget(gpt_neo(), check=False).vocabulary_size == 97


def test_every_tiny_target_passes() -> None:
    """What the other tests stand on is understood, at every width."""
    for target in (text_target(), image_target(), image_target(torch.bfloat16), image_target(torch.float32)):
        probing.probe(target, 1024)
    for family in FAMILIES:
        target = target_of(model(family))
        assert isinstance(target, VisionLanguageTarget)
        probing.probe(target, 1024)


def test_rounding_is_no_error() -> None:
    """A bfloat16 model with many layers passes."""
    config = hub.LlamaConfig(**SIZE | dict(num_hidden_layers=24))
    CausalTarget(loud(hub.LlamaForCausalLM(config)).bfloat16())


def bloom() -> PreTrainedModel:
    return hub.BloomForCausalLM(hub.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4))


def t5() -> PreTrainedModel:
    return hub.T5ForConditionalGeneration(
        hub.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    )


def bart() -> PreTrainedModel:
    layers = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    return hub.BartForConditionalGeneration(
        hub.BartConfig(vocab_size=97, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, **layers)
    )


def whisper() -> PreTrainedModel:
    layers = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    config = hub.WhisperConfig(vocab_size=97, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, **layers, **special)
    return hub.WhisperForConditionalGeneration(config)


def bert() -> PreTrainedModel:
    config = hub.BertConfig(**{key: SIZE[key] for key in SIZE if key != "num_key_value_heads"})
    return hub.BertModel(config)


def csm() -> PreTrainedModel:
    depth = dict(
        SIZE,
        backbone_hidden_size=32,
        num_codebooks=4,
        vocab_size=40,
    )
    return hub.CsmForConditionalGeneration(
        hub.CsmConfig(**SIZE | dict(num_codebooks=4, text_vocab_size=97, vocab_size=40), depth_decoder_config=depth)
    )


@pytest.mark.parametrize("build", [bloom, t5, bart, whisper, bert, csm])
def test_tracebacks_are_refusals(build) -> None:
    """Models that the target cannot read at all are refused in one line that names the class."""
    model = build().eval()
    with pytest.raises(MmspecError, match=f"^{type(model).__name__} ") as error:
        CausalTarget(model)
    assert "\n" not in str(error.value)


def test_experts_in_float64() -> None:
    """The reason of a foreign error is told, and what cures the commonest in float64."""
    config = hub.Qwen3MoeConfig(
        **SIZE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8, decoder_sparse_step=1
    )
    moe = hub.Qwen3MoeForCausalLM(config).eval()
    CausalTarget(moe)
    with pytest.raises(MmspecError, match=r"model.set_experts_implementation\('eager'\)"):
        CausalTarget(moe.double())


def test_other_packages_add_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of the group mmspec.targets names the class for a model type; one that does not load is told."""
    from importlib.metadata import EntryPoint

    from mmspec.targets import registry

    def points(group: str) -> list[EntryPoint]:
        return [
            EntryPoint("llama", "mmspec.targets.causal:CausalTarget", group),
            EntryPoint("gpt2", "nowhere:X", group),
        ]

    monkeypatch.setattr(registry, "entry_points", points)
    assert type(target_of(llama())) is CausalTarget
    gpt2 = hub.GPT2LMHeadModel(hub.GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(MmspecError, match="the target of gpt2 models, nowhere:X, does not load"):
        target_of(gpt2)
