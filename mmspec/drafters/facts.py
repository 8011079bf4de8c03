"""What a drafter's folder says of itself: its kind, its target, and whether it fits a model; no weights are loaded."""

from pathlib import Path

from mmspec.drafters.layouts import Files, Layout, find
from mmspec.errors import MmspecError


def is_drafter(folder: Path, within: bool = False) -> bool:
    """Whether a folder holds a drafter and not a model: a file of mmspec's, or a published layout but "a model".

    A model with a drafter `within` counts only if that is asked for.
    """
    if "kind" in Files(folder).config:
        return True
    found = find(folder)
    return found is not None and found[0].name != "a model" and (within or not in_model(*found))


def in_model(layout: Layout, files: Files) -> bool:
    """Whether a drafter is a part of the files of a model."""
    return bool(layout.within) and any(not name.startswith(layout.within) for name in files.names)


def drafter_facts(folder: Path, model: Path | None = None) -> dict:
    """A drafter's folder as data; with the folder of a `model`, whether it fits, and why not.

    Raises MmspecError for a folder that holds no drafter.
    """
    files, found = Files(folder, model), find(folder, model)
    config, own = files.config, files.config.get("kind")
    if found is None and own is None:
        raise MmspecError(f"{folder} holds no drafter that mmspec reads")
    layer = config.get("transformer_layer_config") or config
    facts: dict = {
        "drafter": str(folder),
        "layout": f"mmspec, {own}" if found is None else found[0].name,
        "read": found is None or bool(found[0].path),
        "for": target_name(config) or ("the model in its folder" if found and in_model(*found) else "not said"),
        "hidden_size": config.get("target_hidden_size")
        or config.get("backbone_hidden_size")
        or (layer.get("text_config") or layer).get("hidden_size")
        or width_of(files),
        "megabytes": round(sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6, 1),
    }
    if model is not None:
        reason = why_not(files, found[0] if found else None, facts["hidden_size"], model)
        facts |= {"model": str(model), "fits": not reason, "why": reason}
    return facts


def target_name(config: dict) -> str:
    """Which model a drafter was made for, by its configuration; "" if it does not say."""
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    names = (
        verifier.get("name_or_path"),
        config.get("base_model_name_or_path"),
        config.get("target_model_name_or_path"),
        config.get("target_model_type"),
        config.get("target") and f"weights {config['target']}",
    )
    return str(next((name for name in names if name), ""))


def width_of(files: Files) -> int | None:
    """The width of hidden states by the tensors, where the configuration of a Medusa says nothing of it."""
    name = next((name for name in sorted(files.names) if name.endswith("0.0.linear.weight")), None)
    return files.tensors[name].shape[1] if name else None


def why_not(files: Files, layout: Layout | None, width: int | None, model: Path) -> str:
    """Why a drafter does not fit a model, by both configurations; "" where nothing speaks against it."""
    from mmspec.pipelines import llamagen_files
    from mmspec.pipelines.families import folder_family
    from mmspec.pipelines.transformer import describe
    from mmspec.zoo import weights_hash

    config = llamagen_files.describe(model) if folder_family(model) == "llamagen" else describe(model)[1]
    text = config.get_text_config()
    if layout is not None and not layout.path:
        return f"drafters of the kind {layout.name} are not read"
    if width not in (None, text.hidden_size):
        return f"it reads hidden states of {width} numbers, the model has {text.hidden_size}"
    if layout is not None:
        return layout.load().misfit(files, text)
    if files.config.get("target"):
        folder = model / "transformer" if (model / "transformer").is_dir() else model
        if files.config["target"] != weights_hash(folder):
            return "it was trained on other weights: exact, but slow"
    return ""
