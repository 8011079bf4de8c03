"""Random vision-language models, their prompts, and MSD drafters for them."""

from functools import cache

import torch
import transformers as hub
from transformers import PreTrainedModel

from mmspec.drafters.msd import MsdDrafter

IMAGE, WORDS = 39, 40
TEXT = dict(
    vocab_size=WORDS,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=512,
    initializer_range=0.3,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
)
EYE = dict(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=32,
    patch_size=8,
    projection_dim=16,
)


@cache
def model(family: str) -> PreTrainedModel:
    """A random model of a family."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "qwen2_vl":
            eye = dict(depth=2, embed_dim=32, hidden_size=32, mlp_ratio=1, num_heads=2, patch_size=4)
            rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
            marks = dict(image_token_id=IMAGE, video_token_id=38, vision_start_token_id=37, vision_end_token_id=36)
            config = hub.Qwen2VLConfig(text_config=TEXT | {"rope_parameters": rope}, vision_config=eye, **marks)
            found = hub.Qwen2VLForConditionalGeneration(config)
        elif family == "qwen2_5_vl":
            eye = dict(
                depth=2,
                hidden_size=32,
                intermediate_size=32,
                num_heads=2,
                patch_size=4,
                out_hidden_size=32,
                fullatt_block_indexes=[1],
            )
            rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
            marks = dict(image_token_id=IMAGE, video_token_id=38, vision_start_token_id=37, vision_end_token_id=36)
            config = hub.Qwen2_5_VLConfig(
                text_config=TEXT | {"rope_parameters": rope}, vision_config=eye | {"window_size": 16}, **marks
            )
            found = hub.Qwen2_5_VLForConditionalGeneration(config)
        else:
            name = {"llava": "Llava", "llava_next": "LlavaNext"}[family]
            grids = {} if family == "llava" else {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
            text, eye = hub.LlamaConfig(**TEXT), hub.CLIPVisionConfig(**EYE)
            config = getattr(hub, f"{name}Config")(
                text_config=text, vision_config=eye, image_token_index=IMAGE, vision_feature_layer=-1, **grids
            )
            found = getattr(hub, f"{name}ForConditionalGeneration")(config)
        for name, weight in found.named_parameters():
            if weight.ndim > 1 and "norm" not in name:
                torch.nn.init.normal_(weight, std=0.25)
        return found.double().eval()


def asked(family: str, sizes: list[tuple[int, int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """What a processor gives for one row: a question about images of these sizes (height, width)."""
    chance = torch.Generator().manual_seed(seed)
    ids, seen = [1, 5, 6], {}
    if family == "llava" and sizes:
        seen = {"pixel_values": torch.randn(len(sizes), 3, 32, 32, generator=chance, dtype=torch.float64)}
        counts = [16] * len(sizes)
    elif family == "llava_next" and sizes:
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        grids = model(family).config.image_grid_pinpoints
        patches = [image_size_to_num_patches(list(size), grids, 32) for size in sizes]
        seen = {
            "pixel_values": torch.randn(len(sizes), max(patches), 3, 32, 32, generator=chance, dtype=torch.float64),
            "image_sizes": torch.tensor(sizes),
        }
        with torch.inference_mode():
            counts = [
                len(part) for part in model(family).model.get_image_features(**seen, return_dict=True).pooler_output
            ]
    elif sizes:
        grids = torch.tensor([[1, height // 4, width // 4] for height, width in sizes])
        seen = {
            "pixel_values": torch.randn(int(grids.prod(1).sum()), 3 * 2 * 16, generator=chance, dtype=torch.float64),
            "image_grid_thw": grids,
        }
        counts = [int(grid.prod()) // 4 for grid in grids]
    for count in counts if sizes else []:
        ids += [37, *[IMAGE] * count, 36, 7]
    ids += torch.randint(3, 30, (4,), generator=chance).tolist()
    row = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long), **seen}
    if family.startswith("qwen2"):
        row["mm_token_type_ids"] = (row["input_ids"] == IMAGE).int()
    return row


FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")
IMAGES = ([], [(32, 32)], [(64, 32)], [(32, 64), (64, 64)])


SHAPE = dict(hidden_size=32, intermediate_size=48, heads=4, kv_heads=2)


def built(dtype: torch.dtype = torch.float64, **changes) -> MsdDrafter:
    """A random drafter, peaked enough that trees differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        found = MsdDrafter(**SHAPE, **changes)
        for weight in found.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return found.to(dtype).eval()


KINDS = {
    "decoupled": {},
    "EAGLE-2": {"decoupled": False},
    "few tokens": {"tokens": list(range(0, 40, 3))},
    "qwen2": {"layer": "qwen2"},
    "own embedding": {"own_embedding": 40},
}
