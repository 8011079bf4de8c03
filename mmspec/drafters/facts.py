"""What a drafter's folder says of itself: its kind, its target, and whether it fits a model; no weights are loaded."""

from pathlib import Path

from mmspec.drafters.layouts import Files, find
from mmspec.errors import MmspecError


def is_drafter(folder: Path) -> bool:
    """Whether a folder holds a drafter and not a model: a file of mmspec's, or a published layout but "a model"."""
    if "kind" in Files(folder).config:
        return True
    found = find(folder)
    return found is not None and found[0].name != "a model"


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
        "for": target_name(config) or "not said",
        "hidden_size": config.get("target_hidden_size") or layer.get("hidden_size") or width_of(files),
        "megabytes": round(sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6, 1),
    }
    if model is not None:
        reason = why_not(facts, config, model)
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


def why_not(facts: dict, config: dict, model: Path) -> str:
    """Why a drafter does not fit a model, by both configurations; "" where nothing speaks against it."""
    from mmspec.drafters.dflash import read_numbers
    from mmspec.pipelines.transformer import describe
    from mmspec.zoo import weights_hash

    text = describe(model)[1].get_text_config()
    if not facts["read"]:
        return f"drafters of the kind {facts['layout']} are not read"
    if facts["hidden_size"] not in (None, text.hidden_size):
        return f"it reads hidden states of {facts['hidden_size']} numbers, the model has {text.hidden_size}"
    if facts["layout"] in ("DFlash", "DSpark"):
        numbers = read_numbers(Files(Path(facts["drafter"])), config.get("dflash_config") or {})
    else:
        numbers = config.get("eagle_aux_hidden_state_layer_ids") or []
    if numbers and max(numbers) > text.num_hidden_layers:
        return f"it reads hidden states {numbers}, the model has 0 to {text.num_hidden_layers}"
    if facts["layout"].startswith("mmspec") and config.get("target"):
        folder = model / "transformer" if (model / "transformer").is_dir() else model
        if config["target"] != weights_hash(folder):
            return "it was trained on other weights: exact, but slow"
    return ""
