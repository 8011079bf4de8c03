"""Write docs/api.md from docstrings: python docs/make_api.py"""

import inspect
import re
from importlib import import_module
from pathlib import Path

PAGE = Path(__file__).with_name("api.md")

MODULES = {
    "mmspec.pipelines": ["pipeline", "task_of"],
    "mmspec.pipelines.base": ["Pipeline", "GenerateOptions"],
    "mmspec.pipelines.session": ["Session"],
    "mmspec.pipelines.text_to_image": ["TextToImagePipeline"],
    "mmspec.pipelines.text_to_speech": ["TextToSpeechPipeline"],
    "mmspec.pipelines.image_text_to_text": ["ImageTextToTextPipeline"],
    "mmspec.pipelines.image_output": ["TextToImageOutput"],
    "mmspec.pipelines.outputs": [
        "PartialImages",
        "TextToSpeechOutput",
        "AudioChunk",
        "ImageTextToTextOutput",
        "TextChunk",
    ],
    "mmspec.custom_generate": ["speculate", "SpeculativeOutput"],
    "mmspec.engine.loop": ["Batch", "Round", "Generation", "generate", "stream"],
    "mmspec.engine.rows": ["Stop"],
    "mmspec.engine.sampling": ["SamplingOptions"],
    "mmspec.engine.stats": ["GenerationStats"],
    "mmspec.engine.accept": ["acceptance"],
    "mmspec.engine.accept.base": ["AcceptanceRule", "Accepted", "Committed"],
    "mmspec.engine.accept.exact": ["Exact"],
    "mmspec.engine.accept.rejection": ["Rejection"],
    "mmspec.engine.accept.tolerance": ["Tolerance"],
    "mmspec.engine.accept.typical": ["Typical"],
    "mmspec.engine.tree": ["DraftTree", "root", "chain", "build_tree"],
    "mmspec.engine.state": ["State", "Output", "PromptEmbeds"],
    "mmspec.targets.base": ["Target", "Prompts", "Grid"],
    "mmspec.targets.causal": ["CausalTarget"],
    "mmspec.targets.image": ["ImageTarget"],
    "mmspec.targets.janus": ["JanusTarget"],
    "mmspec.targets.glm_image": ["GlmImageTarget"],
    "mmspec.targets.llamagen": ["LlamaGenTarget", "CaptionPrompts"],
    "mmspec.targets.emu3": ["Emu3Target"],
    "mmspec.targets.chameleon": ["ChameleonTarget", "LuminaTarget"],
    "mmspec.targets.speech": ["SpeechTarget"],
    "mmspec.targets.vision_language": ["VisionLanguageTarget", "VisualPrompts"],
    "mmspec.targets.registry": ["target_of"],
    "mmspec.drafters.base": ["Drafter", "TrainedDrafter"],
    "mmspec.drafters.registry": ["load", "names", "usable"],
    "mmspec.train.corpus": ["Corpus", "CorpusSettings"],
    "mmspec.train.drafter": ["DrafterSettings"],
    "mmspec.train.stages": ["Training"],
    "mmspec.codecs.vqgan": ["VQGANTokenizer", "VQGANConfig"],
    "mmspec.codecs.base": ["Codec", "SavedCodec", "ImageTokenizer", "StreamDecoder"],
}


def signature(thing: object) -> str:
    """Parameters without annotations, as a reader types them."""
    parameters = [name for name in inspect.signature(thing).parameters.values() if name.name not in ("self", "cls")]
    stripped = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return re.sub(r"<[^>]+>( at \w+>)?", "...", str(inspect.Signature(stripped)))


def entry(name: str, thing: object, level: int) -> list[str]:
    """A heading, the signature and the docstring."""
    text = inspect.getdoc(thing) or ""
    plain = inspect.isclass(thing) and (getattr(thing, "_is_protocol", False) or issubclass(thing, dict))
    call = name if plain else f"{name}{signature(thing)}"
    return [f"{'#' * level} `{call}`", "", text, ""]


def members(kind: type) -> list[tuple[str, object]]:
    """Public methods and properties that a class defines itself and documents."""
    found = []
    for name, value in vars(kind).items():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if (not name.startswith("_") or name == "__call__") and inspect.isfunction(function) and function.__doc__:
            found.append((name, value))
    return found


def page() -> str:
    """The whole page."""
    lines = ["# API", "", "Made from docstrings by `python docs/make_api.py`.", ""]
    for module, names in MODULES.items():
        lines += [f"## {module}", ""]
        for name in names:
            thing = getattr(import_module(module), name)
            lines += entry(name, thing, 3)
            for member, value in members(thing) if inspect.isclass(thing) else ():
                if isinstance(value, property):
                    lines += [f"- `.{member}`: {inspect.getdoc(value)}", ""]
                else:
                    function = getattr(value, "__func__", value)
                    text = (inspect.getdoc(function) or "").replace("\n", "\n  ")
                    lines += [f"- `.{member}{signature(function)}`: {text}", ""]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
