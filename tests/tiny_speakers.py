"""Small speech language models of people's families, as folders: random weights that are loud."""

from functools import cache
from pathlib import Path

import codec_cases
import torch
from snac import SNAC
from tiny_janus import letters, loud
from tokenizers import processors
from transformers import (
    AddedToken,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mmspec.codecs.snac import SnacCodec
from mmspec.targets.cosyvoice import BODY, MARKS

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<|eot_id|>")
# Of X-Codec 2 as small as `codec_cases` makes it, and of the SNAC below.
LLASA_CODES, SNAC_CODES = 64, 16
OUTE_CODES, COSYVOICE_CODES = 32, 40
LLASA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %}<|eot_id|>{% endif %}"
    "{% endfor %}"
)


def snac(noise: bool = True, **options: object) -> SNAC:
    """20 frames a second, heard well."""
    sizes = dict(encoder_dim=4, encoder_rates=[2, 5], decoder_dim=16, decoder_rates=[5, 2], vq_strides=[4, 2, 1])
    codes = dict(codebook_size=SNAC_CODES, codebook_dim=4, attn_window_size=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SNAC(**dict(sampling_rate=800, noise=noise, depthwise=True) | sizes | codes | options)
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return model.eval()


def tokenizer(*marks: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """Letters, and marks as added tokens; texts begin with `<s>`."""
    made = letters(SPECIAL, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in ("<|eot_id|>", *marks)])
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    made.chat_template = template
    return made


@cache
def llama(vocabulary: int) -> LlamaForCausalLM:
    """Two layers, in float64."""
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    return loud(LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=1024, **sizes)))


def save_orpheus(folder: Path) -> Path:
    """`<custom_token_0>` to the last code of SNAC's seven slots, and three ids more, as the released model has."""
    words = tokenizer(*(f"<custom_token_{i}>" for i in range(10 + 7 * SNAC_CODES)))
    words.save_pretrained(folder)
    llama(len(words) + 3).save_pretrained(folder)
    SnacCodec(snac()).save_pretrained(folder / "codec")
    return folder


def save_llasa(folder: Path) -> Path:
    """X-Codec 2 beside the model."""
    names = [f"<|{task}_{end}|>" for task in ("TEXT_UNDERSTANDING", "SPEECH_GENERATION") for end in ("START", "END")]
    words = tokenizer(*names, *(f"<|s_{i}|>" for i in range(LLASA_CODES)), template=LLASA_TEMPLATE)
    words.save_pretrained(folder)
    llama(len(words)).save_pretrained(folder)
    codec_cases.model("xcodec2", torch.float32).save_pretrained(folder / "codec")
    return folder


def save_outetts(folder: Path) -> Path:
    """A DAC of two codebooks beside the model; the tokenizer has what a speaker profile may hold, too."""
    parts = ("text", "audio", "global_features", "word")
    marks = [f"<|{part}_{end}|>" for part in parts for end in ("start", "end")]
    words = tokenizer(
        *("<|im_start|>", "<|im_end|>", *marks, "<|features|>", "<|code|>"),
        *(f"<|t_{i / 100:.2f}|>" for i in range(30)),
        *(f"<|{name}_{i}|>" for name in ("energy", "spectral_centroid", "pitch") for i in range(8)),
        *(f"<|c{book}_{i}|>" for book in (1, 2) for i in range(OUTE_CODES + 1)),
    )
    words.save_pretrained(folder)
    llama(len(words)).save_pretrained(folder)
    model = codec_cases.model("dac", torch.float32)
    model.save_pretrained(folder / "codec")
    return folder


def save_cosyvoice(folder: Path) -> Path:
    """As it is released: `llm.pt`, and the text model's configuration and tokenizer in a folder of its own."""
    text = folder / "CosyVoice-BlankEN"
    words = letters(SPECIAL, pad_token="<pad>", unk_token="<unk>")
    words.save_pretrained(text)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = Qwen2Config(
        vocab_size=len(words) + 24,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        **sizes,
    )
    config.save_pretrained(text)
    body = loud(Qwen2ForCausalLM(config)).float()
    state = {f"llm.model.{name}": value for name, value in body.state_dict().items()}
    speech = COSYVOICE_CODES + MARKS
    for seed, (name, shape) in enumerate(
        {
            "speech_embedding.weight": (speech, 32),
            "llm_embedding.weight": (2, 32),
            "llm_decoder.weight": (speech, 32),
            "llm_decoder.bias": (speech,),
        }.items()
    ):
        state[name] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    assert f"{BODY}embed_tokens.weight" in state
    torch.save(state, folder / "llm.pt")
    return folder
