"""Shape checks on for mmspec while tests run; what tests share."""

import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent))
# Not mmspec.decode: the checker's wrapper would hide from torch.inference_mode that stream() is a generator.
install_import_hook(
    [f"mmspec.{part}" for part in ("accept", "cache", "codecs", "drafters", "metrics", "sampling", "targets", "tree")], "shapes.check"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder with random weights: 8×8 codes, pictures of 16×16 pixels; tests copy it before they change it."""
    import torch
    from diffusers import VQModel
    from tiny import llama

    from mmspec.pipelines.text_to_image import TextToImagePipeline
    from mmspec.training.target import train_text_tokenizer

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (8, 16)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = train_text_tokenizer(["a red heart, 3d style", "a cat face, flat style"], 300)
        vq = VQModel(**blocks, latent_channels=4, num_vq_embeddings=24, norm_num_groups=4, sample_size=16, mid_block_add_attention=False)
        pipe = TextToImagePipeline(text, llama(len(text) + 24, torch.float32), vq, grid_height=8, grid_width=8, max_prompt_tokens=48)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def speech_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole speech model with random weights: voices ada and ben, 32 codes, VADUSA's heads; tests copy it before they change it."""
    import copy
    import json

    import torch
    from tiny import llama

    from mmspec.codecs.mel import MelCodec
    from mmspec.drafters.vadusa import VadusaDrafter
    from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
    from mmspec.training.speech_target import phoneme_tokenizer

    pytest.importorskip("torchaudio")
    letters = sorted(json.loads(Path(pytest.importorskip("hibari.g2p").ASSETS, "vocab.json").read_text("utf-8")))
    text = phoneme_tokenizer(letters, ["ada", "ben"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = MelCodec(width=16, code_width=4, codes=32, dilations=(1,), vocoder_width=32)
        heads = VadusaDrafter(hidden_size=32, heads=4, accuracies=[[0.5 / (depth + rank + 1) for rank in range(8)] for depth in range(4)])
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
