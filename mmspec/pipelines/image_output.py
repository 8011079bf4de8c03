"""What text to image returns: the only output that needs diffusers, which takes long to import."""

from dataclasses import dataclass

from diffusers.utils import BaseOutput

from mmspec.engine.stats import GenerationStats
from mmspec.pipelines.outputs import Images, short_list


@dataclass(repr=False)
class TextToImageOutput(BaseOutput):
    """Pictures, and how they came about: tokens, seeds and statistics; row i is prompt i // num_images_per_prompt."""

    images: Images
    stats: GenerationStats
    tokens: list[list[int]]
    seeds: list[int]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.seeds)} images, seeds={short_list(self.seeds)}, {self.stats!r})"
