"""A random GLM-Image that is small and loud, its processor, and the pipeline of diffusers around it."""

from functools import cache
from pathlib import Path

import diffusers
import torch
import transformers as hub
from tiny_janus import letters, loud
from transformers import PreTrainedModel, ProcessorMixin

CODES, START, END, IMAGE = 60, 60, 61, 90
# The picture, and the preview that is drawn before it, in codes.
GRIDS = [(4, 6), (2, 3)]
PROMPTS = [[70, 71, 75, 80, 72, START], [70, 73, START], [71, 88, 75, 75, 80, 93, 72, 70, START]]


@cache
def glm_image() -> PreTrainedModel:
    """Ids of codes, then the beginning and the end of pictures, then words."""
    text = dict(
        vocab_size=140,
        vision_vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=96,
        eos_token_id=END,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2], partial_rotary_factor=1.0),
    )
    eye = dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, image_size=32)
    config = hub.GlmImageConfig(
        text_config=text,
        vision_config=eye,
        vq_config=dict(embed_dim=8, num_embeddings=CODES, latent_channels=16),
        image_token_id=IMAGE,
        image_start_token_id=START,
        image_end_token_id=END,
    )
    model = loud(hub.GlmImageForConditionalGeneration(config))
    marks = model.generation_config
    marks.eos_token_id, marks.pad_token_id, marks.do_sample, marks.temperature = END, 96, True, 0.9
    marks.top_p = 0.75
    return model


def glm_image_processor() -> ProcessorMixin:
    """Words are letters, after the ids of codes."""
    marks = [f"<code {number}>" for number in range(CODES)]
    text = letters(
        (*marks, "<boi>", "<eoi>", "<62>", "<63>", "<pad>", "<unk>", "<image>", "<sop>", "<eop>"),
        pad_token="<pad>",
        bos_token="<boi>",
        eos_token="<eoi>",
        unk_token="<unk>",
        image_token="<image>",
        grid_bos_token="<sop>",
        grid_eos_token="<eop>",
    )
    pictures = hub.GlmImageImageProcessorPil(patch_size=4, merge_size=1)
    template = "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    processor = hub.GlmImageProcessor(pictures, text, chat_template=template)
    processor.target_h, processor.target_w = 64, 96
    return processor


def save_glm_image(folder: Path) -> Path:
    """The first stage alone, as `save_pretrained` of transformers makes it."""
    glm_image().save_pretrained(folder)
    glm_image_processor().save_pretrained(folder)
    return folder


@cache
def glm_pipeline() -> diffusers.GlmImagePipeline:
    """Both stages; the second one in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = hub.T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
        painter = diffusers.GlmImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=16,
            time_embed_dim=16,
            condition_dim=8,
            prior_vq_quantizer_codebook_size=CODES,
        )
        return diffusers.GlmImagePipeline(
            tokenizer=hub.ByT5Tokenizer(),
            processor=glm_image_processor(),
            text_encoder=hub.T5EncoderModel(words).eval(),
            vision_language_encoder=glm_image(),
            vae=vae.eval(),
            transformer=painter.eval(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        )


def save_glm_pipeline(folder: Path) -> Path:
    """A folder as `save_pretrained` of diffusers makes it."""
    glm_pipeline().save_pretrained(folder)
    return folder
