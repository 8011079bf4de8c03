"""Shape checks on for mmspec while tests run; what tests share."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Not mmspec.engine.loop: the checker's wrapper would hide from torch.inference_mode that stream() is a generator.
install_import_hook(
    [
        f"mmspec.{part}"
        for part in (
            "codecs",
            "drafters",
            "engine.accept",
            "engine.cache",
            "engine.noise",
            "engine.replay",
            "engine.sampling",
            "engine.state",
            "engine.tree",
            "targets",
        )
    ],
    "shapes.check",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder with random weights: 8×8 codes, pictures of 16×16 pixels; tests copy it before they change
    it.
    """
    import torch
    from diffusers import VQModel
    from tiny import llama

    from mmspec.pipelines.text_to_image import TextToImagePipeline
    from recipes.emoji_64.target import train_text_tokenizer

    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = train_text_tokenizer(["a red heart, 3d style", "a cat face, flat style"], 300)
        vq = VQModel(
            **blocks,
            latent_channels=4,
            num_vq_embeddings=24,
            norm_num_groups=4,
            sample_size=16,
            mid_block_add_attention=False,
        )
        pipe = TextToImagePipeline(
            text, llama(len(text) + 24, torch.float32), vq, grid_height=8, grid_width=8, max_prompt_tokens=48
        )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def speech_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole speech model with random weights: voices ada and ben, 32 codes, VADUSA's heads; tests copy it before they
    change it.
    """
    import copy
    import json

    import torch
    from tiny import llama

    from mmspec.codecs.mel import MelCodec
    from mmspec.drafters.vadusa import VadusaDrafter
    from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
    from recipes.wren_86.target import phoneme_tokenizer

    pytest.importorskip("torchaudio")
    letters = sorted(json.loads(Path(pytest.importorskip("hibari.g2p").ASSETS, "vocab.json").read_text("utf-8")))
    text = phoneme_tokenizer(letters, ["ada", "ben"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = MelCodec(width=16, code_width=4, codes=32, dilations=(1,), vocoder_width=32)
        heads = VadusaDrafter(
            hidden_size=32, heads=4, accuracies=[[0.5 / (depth + rank + 1) for rank in range(8)] for depth in range(4)]
        )
        for weight in (*codec.decoder.parameters(), *codec.vocoder.parameters(), *heads.heads.parameters()):
            if weight.dim() > 1:  # large enough that every token is heard
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    speaker = copy.deepcopy(llama(len(text) + 32 + 1, torch.float32))
    speaker.lm_head.weight.detach()[-1] = 0.0  # the end comes after some 50 tokens, and never when greedy
    pipe = TextToSpeechPipeline(text, speaker, codec, ["ada", "ben"], tokens_per_phoneme=3.0)
    folder = tmp_path_factory.mktemp("models") / "tiny-speech"
    heads.save_pretrained(folder / "drafters" / "vadusa")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole LLaVA with random weights: pictures of 32×32 in 16 tokens, words of one letter; tests copy it before they
    change it.
    """
    import torch
    from tiny_vlm import EYE, TEXT
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    from mmspec.drafters.msd import MsdDrafter
    from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

    marks = ["<pad>", "<s>", "<end>", "<image>", "<user>", "<assistant>"]
    letters = [*"abcdefghijklmnopqrstuvwxyz .,!?0123456789é"]
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate([*marks, *letters, "<unk>"])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = dict(
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<end>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    text = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    text.add_special_tokens({"additional_special_tokens": marks[4:]})
    template = (
        "<s>{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'image' %}<image>{% "
        "else %}"
        "{{ part.text | lower }}{% endif %}{% endfor %}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    eye = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    layout = dict(
        patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1, image_token="<image>"
    )
    processor = LlavaProcessor(eye, text, chat_template=template, **layout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = LlamaConfig(**TEXT | {"vocab_size": len(text), "eos_token_id": 2})
        config = LlavaConfig(
            text_config=words, vision_config=CLIPVisionConfig(**EYE), image_token_index=3, vision_feature_layer=-1
        )
        model = LlavaForConditionalGeneration(config).eval()
        msd = MsdDrafter(hidden_size=32, intermediate_size=48, heads=4, kv_heads=2)
        for part in (model, msd):
            for name, weight in part.named_parameters():
                if weight.ndim > 1 and "norm" not in name:
                    torch.nn.init.normal_(weight, std=0.25)
    model.generation_config.eos_token_id = 2
    folder = tmp_path_factory.mktemp("models") / "tiny-vision"
    msd.save_pretrained(folder / "drafters" / "msd")
    ImageTextToTextPipeline(processor, model, max_new_tokens=24).save_pretrained(folder)
    return folder
