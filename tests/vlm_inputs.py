"""How models of transformers' families see pictures and hear sounds: what their processors would give them."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
import transformers as hub
from torch import Tensor
from transformers import PreTrainedConfig

# Token ids with a meaning, which no model says: its head has zeros in their rows.
IMAGE, START, END, ROW, VIDEO, FIRST = 60, 61, 62, 63, 59, 58
WORDS, SPECIAL = 64, (0, 1, FIRST - 1, FIRST, VIDEO, IMAGE, START, END, ROW)
WINDOW = 8

TEXT = dict(
    vocab_size=WORDS,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
    tie_word_embeddings=False,
)
EYE = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
)
SIGLIP = EYE | dict(model_type="siglip_vision_model", vision_use_head=False)
CLIP = EYE | dict(model_type="clip_vision_model", projection_dim=16)
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
MARKS = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
MIXED = dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])

# Pictures of a row, each by its height and width; families with pictures of one size do not look at these.
Sizes = list[tuple[int, int]]
ROWS: tuple[Sizes, ...] = ([], [(2, 3)], [(1, 2), (3, 2)])

# Inputs of a row beside its ids, and the ids that stand for each picture.
Seen = tuple[dict[str, Tensor], list[list[int]]]


def text(model_type: str = "llama", **changes) -> dict:
    """The configuration of a small text model, with copies of what configurations may write to."""
    return TEXT | {"model_type": model_type} | deepcopy(changes)


def draw(*shape: int) -> Tensor:
    """Random pixels."""
    return torch.randn(*shape, dtype=torch.float64)


def squares(count: int, side: int = 16) -> Callable[[Sizes], Seen]:
    """Pictures of one size, `count` tokens each."""
    return lambda sizes: ({"pixel_values": draw(len(sizes), 3, side, side)}, [[IMAGE] * count] * len(sizes))


def patches(*shape: int, merge: int = 2) -> Callable[[Sizes], Seen]:
    """Patches of all pictures one after the other, with their grids."""

    def see(sizes: Sizes) -> Seen:
        grids = torch.tensor([[1, merge * height, merge * wide] for height, wide in sizes])
        return (
            {"pixel_values": draw(int(grids.prod(1).sum()), *shape), "image_grid_thw": grids},
            [[IMAGE] * (height * wide) for height, wide in sizes],
        )

    return see


def tiled(sizes: Sizes) -> Seen:
    """LLaVA-NeXT: a small picture and tiles of the large one, as many tokens as it makes vectors."""
    shapes = torch.tensor([[16, 32] if wide > height else [32, 16] for height, wide in sizes])
    return {"pixel_values": draw(len(sizes), 3, 3, 16, 16), "image_sizes": shapes}, [[]] * len(sizes)


def padded(count: int) -> Callable[[Sizes], Seen]:
    """Idefics: pictures `row picture`, smaller ones padded and masked."""

    def see(sizes: Sizes) -> Seen:
        mask = torch.zeros(1, len(sizes), 16, 16, dtype=torch.bool)
        for picture, (height, wide) in enumerate(sizes):
            mask[0, picture, : 4 + 4 * height, : 4 + 4 * wide] = True
        return (
            {"pixel_values": draw(1, len(sizes), 3, 16, 16) * mask[:, :, None], "pixel_attention_mask": mask},
            [[IMAGE] * count] * len(sizes),
        )

    return see


def pixtral(sizes: Sizes) -> Seen:
    """Pictures of their own sizes, padded to the largest, with an end of each row."""
    shapes = torch.tensor([[8 * height, 8 * wide] for height, wide in sizes])
    high, wide = shapes.max(0).values.tolist()
    ids = [([IMAGE] * wide + [ROW]) * (height - 1) + [IMAGE] * wide + [END] for height, wide in sizes]
    return {"pixel_values": draw(len(sizes), 3, high, wide), "image_sizes": shapes}, ids


def placed(sizes: Sizes) -> Seen:
    """Gemma 4: patches of each picture and their places, padded."""
    places = torch.full((len(sizes), 24, 2), -1)
    for picture, (height, wide) in enumerate(sizes):
        places[picture, : 4 * height * wide] = torch.cartesian_prod(torch.arange(2 * wide), torch.arange(2 * height))
    return {"pixel_values": draw(len(sizes), 24, 48), "image_position_ids": places}, [
        [IMAGE] * (height * wide) for height, wide in sizes
    ]


def coded(sizes: Sizes) -> Seen:
    """Emu3: rows of codes, each with its end."""
    shapes = torch.tensor([[8 * height, 8 * wide] for height, wide in sizes])
    return {"pixel_values": draw(len(sizes), 3, 24, 24), "image_sizes": shapes}, [
        [IMAGE] * (height * (wide + 1)) for height, wide in sizes
    ]


def lined(sizes: Sizes) -> Seen:
    """Hunyuan: patches as Qwen's, one more token for each row's end, and one before and after each picture."""
    seen, _ = patches(48)(sizes)
    return seen, [[IMAGE] * (height * (wide + 1) + 2) for height, wide in sizes]


def twice(sizes: Sizes) -> Seen:
    """DeepSeek-VL: the same picture small and large."""
    seen, ids = squares(16)(sizes)
    return seen | {"high_res_pixel_values": draw(len(sizes), 3, 32, 32)}, ids


def merged(sizes: Sizes) -> Seen:
    """VideoLLaMA 3: as Qwen, with how many patches become one on each side."""
    seen, ids = patches(48)(sizes)
    return seen | {"image_merge_sizes": torch.tensor([2] * len(sizes))}, ids


def spoken(sizes: Sizes) -> Seen:
    """Granite Speech: sounds of their own lengths, padded and masked."""
    counts = [2 * height * wide for height, wide in sizes]
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return (
        {"input_features": draw(len(sizes), 5 * max(counts), 8), "input_features_mask": mask},
        [[IMAGE] * count for count in counts],
    )


def heard(frames: int, tokens: int, mask: str = "", transposed: bool = False) -> Callable[[Sizes], Seen]:
    """Sounds as spectrograms of 8 bands; Gemma 4's are transposed, and their mask is a condition."""

    def listen(sizes: Sizes) -> Seen:
        features = draw(len(sizes), 8, frames)
        found = {"input_features": features.mT if transposed else features}
        if mask:
            found[mask] = torch.ones(len(sizes), frames, dtype=torch.bool if transposed else torch.long)
        return found, [[IMAGE] * tokens] * len(sizes)

    return listen


@dataclass
class Family:
    """A family's configuration, how it sees, and what its processor calls text, pictures and answers."""

    config: Callable[[], PreTrainedConfig]
    see: Callable[[Sizes], Seen]
    kinds: dict[str, list[int]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64


def qwen_eye(**changes) -> dict:
    return dict(depth=2, hidden_size=32, intermediate_size=24, num_heads=2, patch_size=4, **changes)


def llava(kind: str, vision: dict, words: dict, **changes) -> Callable[[], PreTrainedConfig]:
    """The configuration of LLaVA and its like."""
    changes = {"tie_word_embeddings": False} | changes
    return lambda: getattr(hub, kind)(text_config=words, vision_config=vision, **changes)


NEXT = dict(image_token_index=IMAGE, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]], vision_feature_layer=-1)
QWEN = dict(mm_token_type_ids=[0, 1, 0])
