"""A random Chameleon that is small and loud, its processor and VQ decoder, and the like of Lumina-mGPT."""

import json
from functools import cache
from pathlib import Path

import torch
import transformers as hub
from safetensors.torch import save_file
from tiny_janus import LETTERS, letters, loud
from tiny_vqgan import PLAIN, vqgan_state, write_vqgan
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

# Ids of the codes by number, which are not in order.
CODES, SIDE = [100 + number * 7 % 20 for number in range(20)], 4
MARKS = ("<pad>", "<s>", "</s>", "<image>", "<boi>", "<eoi>", "<sep>", "<unk>")
PAD, BOS, EOS, IMAGE, BOI, EOI, SEP = range(7)
PROMPTS = [[BOS, 18, 19, 27, 30, SEP, BOI], [BOS, 22, SEP, BOI], [BOS, 19, 40, 41, 19, 22, 23, 38, SEP, BOI]]


# Lumina-mGPT's names for its marks, at the ids that its tokenizer below gives them.
BREAK, TURN, ROW_END, SIZES = 57, 58, 59, [60, 61, 62, 63]
LUMINA = {"<racm3:break>": BREAK, "<reserved08706>": TURN, "<reserved08799>": ROW_END}
LUMINA |= {f"<reserved{8801 + i:05d}>": size for i, size in enumerate(SIZES)}


def build(**options: object) -> PreTrainedModel:
    """Codes of 4×4, in pictures of 8×8 pixels."""
    names = {"<image>": IMAGE, **LUMINA}
    for number, model_id in enumerate(CODES):
        names["IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in f"{number:02d}") + "Z"] = model_id
    vq = dict(
        embed_dim=8,
        num_embeddings=len(CODES),
        latent_channels=8,
        resolution=2 * SIDE,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        attn_resolutions=[],
    )
    config = hub.ChameleonConfig(
        vocab_size=130,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocabulary_map=names,
        vq_config=vq,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        **options,
    )
    return loud(hub.ChameleonForConditionalGeneration(config))


@cache
def chameleon() -> PreTrainedModel:
    """The like of Anole."""
    return build()


@cache
def lumina() -> PreTrainedModel:
    """The like of Lumina-mGPT: its norms of queries and keys are the same for all heads of each of two groups."""
    model = build(model_parallel_size=2)
    random = torch.Generator().manual_seed(2)
    for layer in model.model.layers:
        for part in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            for value in (part.weight, part.bias):
                rows = 1 + torch.randn(2, value.shape[1], generator=random)
                value.data = rows.repeat_interleave(len(value) // 2, 0).double()
    return model


def decoder_state() -> dict[str, Tensor]:
    """The VQGAN whose codebook is that of the models."""
    vq = chameleon().model.vqmodel
    return vqgan_state(PLAIN, vq.quantize.embedding.weight, vq.post_quant_conv.weight)


def chameleon_processor() -> ProcessorMixin:
    """Words are letters."""
    text = letters(
        MARKS,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        image_token="<image>",
        boi_token="<boi>",
        eoi_token="<eoi>",
        sep_token="<sep>",
    )
    return hub.ChameleonProcessor(hub.ChameleonImageProcessor(), text, image_seq_length=SIDE**2)


def lumina_tokenizer() -> hub.PreTrainedTokenizerFast:
    """Words are letters."""
    fill = [f"<fill{number}>" for number in range(BREAK - len(MARKS) - len(LETTERS))]
    return letters(MARKS, (*fill, *LUMINA), pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def save_chameleon(folder: Path, decoder: bool = False) -> Path:
    """A folder as `save_pretrained` of transformers makes it, with the original's decoder if asked for."""
    chameleon().save_pretrained(folder)
    chameleon_processor().save_pretrained(folder)
    if decoder:
        write_vqgan(folder / "tokenizer", decoder_state())
    return folder


def save_lumina(folder: Path) -> Path:
    """A folder as Lumina-mGPT publishes it: a class of its own, norms by groups of heads, no VQ model, a tokenizer
    alone; and the decoder of the original beside them.
    """
    folder.mkdir(parents=True)
    config = lumina().config.to_dict() | {"architectures": ["ChameleonXLLMXForConditionalGeneration"]}
    config |= {"z_loss_weight": 1e-5, "mask_image_logits": False, "dropout": 0.05, "rope_theta": 10000.0}
    config |= {"rope_scaling": None, "torch_dtype": "bfloat16"}
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: value for name, value in lumina().state_dict().items() if ".vqmodel." not in name}
    for name, value in weights.items():
        grouped = "_norm." in name and value.ndim == 2
        weights[name] = (value[:: len(value) // 2] if grouped else value).contiguous()
    save_file(weights, folder / "model-00001-of-00001.safetensors")
    lumina_tokenizer().save_pretrained(folder)
    write_vqgan(folder / "tokenizer", decoder_state())
    return folder
