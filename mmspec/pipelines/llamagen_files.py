"""LlamaGen from its authors' files (github.com/FoundationVision/LlamaGen): their layout, and what they leave out."""

import argparse
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from mmspec import zoo
from mmspec.codecs.vq import VQImageTokenizer
from mmspec.errors import MmspecError, short
from mmspec.pipelines.families import read_config
from mmspec.targets.llamagen import LlamaGenConfig, LlamaGenForImageGeneration

# Attention heads by width and layers, which the weights do not tell (autoregressive/models/gpt.py).
HEADS = {
    (768, 12): 12,
    (1024, 24): 16,
    (1280, 36): 20,
    (1536, 48): 24,
    (2560, 48): 40,
    (2048, 22): 32,
    (3200, 24): 32,
    (4096, 32): 32,
}

# How its own samplers guide, and from how many of the most probable codes they draw.
CLASSES, CAPTIONS = dict(guidance_scale=4.0, top_k=2000), dict(guidance_scale=7.5, top_k=1000)

# Names of the decoder's and the encoder's tensors (tokenizer/tokenizer_image/vq_model.py), and those of diffusers.
VQ_NAMES = (
    (r"^encoder\.conv_blocks\.", "encoder.down_blocks."),
    (r"^decoder\.conv_blocks\.", "decoder.up_blocks."),
    (r"\.res\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"\.mid\.0\.", ".mid_block.resnets.0."),
    (r"\.mid\.1\.", ".mid_block.attentions.0."),
    (r"\.mid\.2\.", ".mid_block.resnets.1."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a released file: a safetensors file, or a pickle that is read without running anything in it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Checkpoints of training hold its arguments, too.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for key in ("model", "module", "state_dict"):
            content = content.get(key, content)
        return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # whatever pickles raise
        raise MmspecError(f"{path} cannot be read as tensors alone ({short(error)}): give the released file") from None


def only_file(folder: Path, files: list[Path], what: str) -> Path | None:
    """The file of a kind. Raises MmspecError for several."""
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise MmspecError(f"{folder} holds several {what}, {names}: keep one of them, in a folder of its own")
    return files[0] if files else None


def read_released(folder: Path, file: Path, side: int | None, scale: int) -> tuple[dict[str, Tensor], LlamaGenConfig]:
    """The tensors of the released file of a folder, and the configuration that they tell."""
    about = read_config(folder) if (folder / "config.json").is_file() else {}
    named = re.search(r"_(256|384|512)\b", file.stem)
    side = side or about.get("side") or (int(named[1]) // scale if named else None)
    if side is None:
        raise MmspecError(f"{file.name} does not say how large its pictures are: give the size in pixels, as 384x384")
    tensors = {
        name: tensor
        for name, tensor in read_tensors(file).items()
        if name != "freqs_cis" and not name.endswith(("kv_cache.k_cache", "kv_cache.v_cache"))
    }
    try:
        return tensors, config_of(tensors, side, scale, about.get("num_attention_heads"))
    except (KeyError, ValueError) as error:
        raise foreign(file, error) from None


def foreign(file: Path, error: Exception) -> MmspecError:
    """The error for a file of other tensors."""
    return MmspecError(f"{file} does not hold the tensors of a LlamaGen ({short(error)}): restore it")


def describe(folder: Path) -> LlamaGenConfig:
    """The configuration of the model in a folder, of which no weights are loaded; without a VQ model whose file says
    how wide a code is, they are taken to be 16 pixels wide.
    """
    file = only_file(folder, zoo.released(folder), "models")
    if file is None:
        return LlamaGenConfig.from_pretrained(folder)
    scales = [re.search(r"_ds(\d+)", path.stem) for path in zoo.released(folder, ("vq_",))]
    return read_released(folder, file, None, next((int(scale[1]) for scale in scales if scale), 16))[1]


def load_model(folder: Path, side: int | None, scale: int, dtype: torch.dtype) -> LlamaGenForImageGeneration:
    """The model in a folder: the released file, or what `save_pretrained` made of it."""
    file = only_file(folder, zoo.released(folder), "models")
    if file is None:
        zoo.check_weights(folder / "model.safetensors")
        kind, options = LlamaGenForImageGeneration, dict(dtype=dtype, output_loading_info=True)
        model, report = kind.from_pretrained(folder, **options)
        zoo.check_report(report, folder / "model.safetensors", folder / "config.json", kind.__name__)
        return model
    tensors, config = read_released(folder, file, side, scale)
    try:
        with torch.device("meta"):
            model = LlamaGenForImageGeneration(config)
        model.load_state_dict(converted(tensors, config, dtype), assign=True)
    except (KeyError, RuntimeError, ValueError) as error:
        raise foreign(file, error) from None
    model.generation_config.update(do_sample=True, temperature=1.0, **(CLASSES if config.classes else CAPTIONS))
    return model


def config_of(tensors: Mapping[str, Tensor], side: int, scale: int, heads: int | None) -> LlamaGenConfig:
    """The configuration that shapes of tensors tell, and the size of the picture."""
    vocabulary, width = tensors["tok_embeddings.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers."))
    heads = heads or HEADS.get((width, layers))
    if heads is None:
        raise MmspecError(
            f"a LlamaGen of {layers} layers of width {width} is none of those released: give it a config.json with "
            '"model_type": "llamagen" and its "num_attention_heads"'
        )
    table = tensors.get("cls_embedding.embedding_table.weight")
    prefix: dict[str, int] = {"classes": 0 if table is None else len(table) - 1}
    if table is None:
        prefix["caption_length"], prefix["caption_width"] = tensors["cls_embedding.uncond_embedding"].shape
    qkv, head_dim = len(tensors["layers.0.attention.wqkv.weight"]), width // heads
    return LlamaGenConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=len(tensors["layers.0.feed_forward.w1.weight"]),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=(qkv // head_dim - heads) // 2,
        head_dim=head_dim,
        max_position_embeddings=prefix.get("caption_length", 1) + side * side + 1,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
        side=side,
        scale=scale,
        **prefix,
    )


def converted(tensors: Mapping[str, Tensor], config: LlamaGenConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors under the names of transformers, queries and keys in its order: a pair that turns together is a
    half apart there, and side by side here.
    """
    apart = partial(rearrange, pattern="(head pair two) width -> (head two pair) width", two=2)
    names = {
        "tok_embeddings.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
        "cls_embedding.embedding_table.weight": "class_embedding.weight",
        "cls_embedding.cap_proj.fc1.weight": "caption_projection.fc1.weight",
        "cls_embedding.cap_proj.fc2.weight": "caption_projection.fc2.weight",
        "cls_embedding.uncond_embedding": "no_caption",
    }
    layer_names = {
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.to(dtype)
        _, number, part = [*name.removesuffix(".weight").split(".", 2), "", ""][:3]
        path = f"model.layers.{number}"
        if part == "attention.wqkv":
            query, key, value = tensor.split([count * config.head_dim for count in (heads, kv_heads, kv_heads)])
            result[f"{path}.self_attn.q_proj.weight"] = apart(query, head=heads)
            result[f"{path}.self_attn.k_proj.weight"] = apart(key, head=kv_heads)
            result[f"{path}.self_attn.v_proj.weight"] = value
        elif name.startswith("layers."):
            result[f"{path}.{layer_names[part]}.weight"] = tensor
        else:
            result[names[name]] = tensor
    return result


def load_tokenizer(folder: Path) -> VQImageTokenizer | None:
    """The VQ model in a folder, as diffusers has it; None if there is none."""
    if (folder / "vqvae").is_dir():
        options: dict[str, Any] = dict(torch_dtype=torch.float32, low_cpu_mem_usage=False)
        return VQImageTokenizer(zoo.load_component(folder, "vqvae", VQModel, **options))
    file = only_file(folder, zoo.released(folder, ("vq_",)), "VQ models")
    if file is None:
        return None
    try:
        return VQImageTokenizer(vq_model(read_tensors(file)))
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise MmspecError(f"{file} does not hold the tensors of LlamaGen's VQ model ({short(error)})") from None


def vq_model(tensors: Mapping[str, Tensor]) -> VQModel:
    """diffusers' VQ model with the weights of LlamaGen's, whose codes are looked up at length 1: here they have it."""
    # The code book's use during training.
    tensors = {name: tensor for name, tensor in tensors.items() if name != "quantize.codebook_used"}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, ours in VQ_NAMES:
            name = re.sub(pattern, ours, name)
        linear = ".attentions." in name and tensor.ndim == 4
        state[name] = (tensor[:, :, 0, 0] if linear else tensor).float()
    state["quantize.embedding.weight"] = normalize(state["quantize.embedding.weight"], dim=-1)
    blocks = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.down_blocks."))
    widths = [len(state[f"encoder.down_blocks.{i}.resnets.0.conv2.weight"]) for i in range(blocks)]
    resnets = {name.split(".")[4] for name in state if name.startswith("encoder.down_blocks.0.resnets.")}
    codes, code_width = state["quantize.embedding.weight"].shape
    plain = blocks - 1
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * plain,
        block_out_channels=tuple(widths),
        layers_per_block=len(resnets),
        latent_channels=len(state["post_quant_conv.weight"]),
        num_vq_embeddings=codes,
        vq_embed_dim=code_width,
    )
    model.load_state_dict(state)
    return model.eval()
