"""Training of the target: tower, projector and low-rank updates of the language model, on the answers of chats."""

from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from recipes.magpie_135.dialogue import Encoded
from recipes.magpie_135.scenes import SIZE


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right: ids, labels (-100 where nothing is learnt), and the pictures of rows that have one."""

    ids: Tensor
    labels: Tensor
    pixels: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device), self.labels.to(device), self.pixels.to(device))


class Learner(nn.Module):
    """Tower, projector and low-rank updates of the language model; all else is frozen."""

    def __init__(self, model: LlavaForConditionalGeneration, rank: int, compiled: bool = False):
        super().__init__()
        model.model.language_model.requires_grad_(False)
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), model.model.language_model
        )
        # Eager attention, and no casts beside those of autocast: a step of short rows on a CPU takes 3.6 s and not 4.6
        # s.
        model.model.language_model.set_attn_implementation("eager")
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.cast_input_dtype_enabled = False
        for name, weight in model.model.language_model.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.float()
        self.model = model
        self.body = torch.compile(model.model.language_model, dynamic=False) if compiled else model.model.language_model

    def state_dict(self, *args, **kwargs):
        """What is learnt, and nothing of what is frozen."""
        learnt = {name for name, weight in self.named_parameters() if weight.requires_grad}
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if key in learnt}

    def load_state_dict(self, state, strict: bool = True, assign: bool = False):
        return super().load_state_dict(state, strict=False, assign=assign)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the answers, nats a token."""
        core, batch = self.model.model, batch.to(self.model.device)
        vectors = core.language_model.embed_tokens(batch.ids)
        if len(batch.pixels):
            visual = torch.stack(list(core.get_image_features(batch.pixels, return_dict=True).pooler_output))
            image_positions = (batch.ids == self.model.config.image_token_id)[..., None]
            vectors = vectors.masked_scatter(image_positions, visual.to(vectors.dtype))
        hidden = self.body(inputs_embeds=vectors, use_cache=False).last_hidden_state[:, :-1]
        labels = batch.labels[:, 1:]
        learnt = labels != -100
        logits = F.linear(hidden[learnt], core.language_model.embed_tokens.weight)
        error = F.cross_entropy(logits.float(), labels[learnt])
        return {"loss": error, "right": (logits.argmax(-1) == labels[learnt]).float().mean()}


def pack(rows: list[tuple[Encoded, Tensor | None]], width: int) -> Batch:
    """Chats and their pictures as one batch, padded to a multiple of `width`."""
    longest = -(-max(len(chat.ids) for chat, _ in rows) // width) * width
    ids, labels = torch.full((len(rows), longest), 2), torch.full((len(rows), longest), -100)
    for row, (chat, _) in enumerate(rows):
        ids[row, : len(chat.ids)] = torch.tensor(chat.ids)
        labels[row, : len(chat.ids)] = torch.where(torch.tensor(chat.answer), torch.tensor(chat.ids), -100)
    pictures = [picture for _, picture in rows if picture is not None]
    return Batch(ids, labels, torch.stack(pictures) if pictures else torch.zeros(0, 3, SIZE, SIZE))
