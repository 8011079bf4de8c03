"""Random models of transformers' families that read pictures or sounds, and prompts for them."""

from functools import cache

import torch
import transformers as hub
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from vlm_inputs import END, IMAGE, SPECIAL, START, Sizes, tiled
from vlm_table import LLAVAS
from vlm_table_extra import EXTRAS
from vlm_table_more import OTHERS
from vlm_table_recurrent import RECURRENT

FAMILIES = LLAVAS | OTHERS | EXTRAS | RECURRENT


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights so large that its outputs depend on everything; it never says a special token."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "embed" in name:
            torch.nn.init.normal_(weight, std=3 / weight.shape[-1] ** 0.5)
        elif weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1.6 / weight[0].numel() ** 0.5)
        else:
            weight.data.add_(torch.randn_like(weight), alpha=0.2)
    head = model.get_output_embeddings().weight
    torch.nn.init.normal_(head, std=5 / head.shape[-1] ** 0.5)
    head.data[list(SPECIAL)] = 0
    return model


def built(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the class that belongs to a configuration."""
    return getattr(hub, type(config).__name__.removesuffix("Config") + "ForConditionalGeneration")(config)


@cache
def model(name: str) -> PreTrainedModel:
    """A random model of a family."""
    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = loud(built(family.config()))
    found.generation_config.eos_token_id = None
    found.set_experts_implementation("eager")
    return found.to(family.dtype).eval()


def asked(name: str, sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """What a processor gives for one row: a question about pictures of these sizes."""
    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        seen, tokens = family.see(sizes) if sizes else ({}, [])
        seen = {key: value.to(family.dtype) if value.is_floating_point() else value for key, value in seen.items()}
        if family.see is tiled and sizes:
            with torch.inference_mode():
                features = model(name).model.get_image_features(**seen, return_dict=True).pooler_output
            tokens = [[IMAGE] * len(part) for part in features]
        ids = [1, 5, 6]
        for picture in tokens:
            ids += [START, *picture, END, 7]
        ids += torch.randint(3, 50, (7 - 2 * len(sizes),)).tolist()
    row = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long), **seen}
    pictured = (row["input_ids"] == IMAGE).long()
    return row | {key: torch.tensor(kinds)[pictured] for key, kinds in family.kinds.items()}
