"""Arguments of a pipeline, checked: prompts, counts, guidance, and a seed for each row."""

from mmspec.errors import MmspecError

MAX_SEED = 2**63 - 1


class ImageRequest:
    """`prompts` and `seeds` have one entry for each picture, the pictures of a prompt next to each other."""

    def __init__(self, prompt: object, seed: object, generator: object, count: int, guidance: float):
        check_count("num_images_per_prompt", count)
        if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not 0 <= guidance <= 20:
            raise MmspecError(
                f"guidance_scale={guidance} is out of range: give a number from 0 to 20 (1 is no guidance)"
            )
        self.guidance = float(guidance)
        self.prompts = [text for text in texts(prompt) for _ in range(count)]
        self.seeds = row_seeds(seed, generator, len(self.prompts))


def texts(prompt: object) -> list[str]:
    """One prompt or a list of them, none of them empty."""
    rows = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(rows, list | tuple) or not all(isinstance(text, str) for text in rows):
        raise MmspecError(f"prompt must be a string or a list of strings, not {type(prompt).__name__}")
    if not rows:
        raise MmspecError("the list of prompts is empty: give at least one")
    if any("\ud800" <= character <= "\udfff" for text in rows for character in text):
        raise MmspecError("the prompt is not valid UTF-8: check the terminal's encoding")
    if any(not text.strip() for text in rows):
        raise MmspecError("the prompt is empty: say what to draw, as in 'a red heart, 3d style'")
    return list(rows)


def row_seeds(seed: object, generator: object, rows: int, name: str = "pictures") -> list[int]:
    """A seed for each row: counted up from one seed, as listed, or drawn from the generator; errors call the rows
    `name`.
    """
    if seed is not None and generator is not None:
        raise MmspecError("both seed and generator were given: give one of them")
    if seed is None:
        return draw_seeds(generator, rows, name)
    several = [seed + row for row in range(rows)] if isinstance(seed, int) and not isinstance(seed, bool) else [seed]
    seeds: list = list(seed) if isinstance(seed, list | tuple) else several
    for value in seeds:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
            raise MmspecError(f"seed={value} is out of range: give a whole number from 0 to 2**63 - 1")
    if len(seeds) != rows:
        raise MmspecError(f"{len(seeds)} seeds were given for {rows} {name}: give one each, or a single number")
    return seeds


def draw_seeds(generator: object, rows: int, name: str = "pictures") -> list[int]:
    """Seeds from one generator (or torch's own, if None) counted up, or from one generator for each row."""
    import torch  # here, so that arguments are checked before it is loaded

    def draw(source: object) -> int:
        if source is None:
            return int(torch.randint(2**31, ()))
        if not isinstance(source, torch.Generator):
            raise MmspecError(f"generator is a {type(source).__name__}: give a torch.Generator, or a list of them")
        return int(torch.randint(2**31, (), generator=source, device=source.device))

    if not isinstance(generator, list | tuple):
        first = draw(generator)
        return [first + row for row in range(rows)]
    if len(generator) != rows:
        raise MmspecError(f"{len(generator)} generators were given for {rows} {name}: give one each, or a single one")
    return [draw(source) for source in generator]


def check_count(name: str, count: object) -> None:
    """Raise MmspecError for an argument that is no whole number from 1 up."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise MmspecError(f"{name}={count}: give a whole number from 1 up")
