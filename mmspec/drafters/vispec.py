"""ViSpec (arXiv 2509.15235, github.com/KangJialiang/ViSpec): EAGLE over prompts whose pictures are compressed."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmspec.drafters.eagle import EagleDrafter
from mmspec.drafters.layouts import Files
from mmspec.engine.noise import Noise
from mmspec.engine.state import PromptEmbeds, State
from mmspec.engine.tree import DraftTree


class ImageAdaptor(nn.Module):
    """Learnt queries attend to the vectors of one picture: one vector for each of them."""

    def __init__(self, hidden_size: int, heads: int, queries: int, bias: bool):
        super().__init__()
        self.q = nn.Parameter(torch.zeros(queries, heads, hidden_size // heads))
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, image: Float[Tensor, "position width"]) -> Float[Tensor, "query width"]:
        heads = self.q.shape[1]
        keys, values = (part(image).unflatten(-1, (heads, -1)).transpose(0, 1) for part in (self.k_proj, self.v_proj))
        mixed = nn.functional.scaled_dot_product_attention(self.q.transpose(0, 1), keys, values)
        return self.o_proj(mixed.transpose(0, 1).flatten(1))


class ViSpecDrafter(EagleDrafter):
    """EAGLE that reads each picture as `queries - 1` vectors, at the last positions of the picture.

    The adaptor's last vector stands for the picture as a whole: hidden states of the text after it enter as
    `img_fc([hidden; that vector])`, with zeros before the first picture.
    """

    name, format = "vispec", ""

    def __init__(self, *, heads: int, hidden_size: int, queries: int = 2, adaptor_bias: bool = False, **options: Any):
        super().__init__(heads=heads, hidden_size=hidden_size, **options)
        self.imadpt = ImageAdaptor(hidden_size, heads, queries, adaptor_bias)
        self.img_fc = nn.Linear(2 * hidden_size, hidden_size, bias=self.fc.bias is not None)

    @classmethod
    def released_options(cls, files: Files) -> dict:
        queries = len(files.tensors["imadpt.q"]) if "imadpt.q" in files.names else 2
        bias = "imadpt.k_proj.bias" in files.names
        return super().released_options(files) | {"queries": queries, "adaptor_bias": bias}

    def _picture_runs(self, prompt: PromptEmbeds) -> list[tuple[bool, slice]]:
        """Runs of text and of pictures in a prompt without its first position."""
        is_text = prompt.is_text[1:].tolist()
        edges = [0, *(i for i in range(1, len(is_text)) if is_text[i] != is_text[i - 1]), len(is_text)]
        return [(is_text[first], slice(first, end)) for first, end in zip(edges, edges[1:]) if first < end]

    def _see(
        self, vectors: Float[Tensor, "*shape width"], hidden: Float[Tensor, "*shape width"], image: Tensor
    ) -> Float[Tensor, "*shape width"]:
        """Text after a picture of which `image` is the vector."""
        return self.fuse(vectors, self.img_fc(torch.cat([hidden.to(image.dtype), image.expand_as(hidden)], -1)))

    def prompt_inputs(
        self, state: State, sequence: int
    ) -> tuple[Float[Tensor, "read width"], Int[Tensor, "read"], int]:
        prompt, features = state.prompt_hidden[sequence]
        vectors, positions = self.read_prompt(prompt)[1:], torch.arange(len(features), device=features.device)
        image, parts, kept = vectors.new_zeros(1, vectors.shape[1]), [vectors[:0]], [positions[:0]]
        for is_text, run in self._picture_runs(prompt):
            if is_text:
                parts.append(self._see(vectors[run], features[run], image))
                kept.append(positions[run])
            else:
                adapted = self.imadpt(vectors[run])
                image = adapted[-1:]
                parts.append(adapted[:-1])
                kept.append(positions[run.stop - len(adapted) + 1 : run.stop])
        self._images[id(prompt)] = image
        read = torch.cat(parts)
        return read, torch.cat(kept), len(features) - len(read)

    def _read_rows(self, state: State, rows: list[int]) -> None:
        present = [id(prompt) for prompt, _ in state.prompt_hidden]
        self._images: dict[int, Tensor] = {key: v for key, v in getattr(self, "_images", {}).items() if key in present}
        super()._read_rows(state, rows)

    def _committed(self, state: State, sequence: int, new: int) -> Float[Tensor, "position width"]:
        branch, row = divmod(sequence, state.rows)
        count = state.counts[row]
        tokens = torch.tensor(state.tokens[row][count - new :], dtype=torch.long, device=state.roots.device)
        hidden = state.features[branch, row, count - new : count]
        return self._see(self.embed(self.target, tokens), hidden, self._image(state, sequence))

    def _image(self, state: State, sequence: int) -> Float[Tensor, "1 width"]:
        return self._images[id(state.prompt_hidden[sequence][0])]

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        self._level_images = torch.stack([self._image(state, sequence) for sequence in self.sequences(state)])
        return super().draft(state, noise, limit)

    def fuse_level(
        self, vectors: Float[Tensor, "sequence beam width"], hidden: Float[Tensor, "sequence beam width"]
    ) -> Float[Tensor, "sequence beam width"]:
        return self._see(vectors, hidden, self._level_images)
