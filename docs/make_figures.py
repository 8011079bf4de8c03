"""Write models/*/results.json, which `mmspec info MODEL` shows, from docs/results: python docs/make_figures.py"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# For each model: its suite, what was measured, the rows of that setting, and the drafter of each label.
MODELS = {
    "emoji-64": (
        "image",
        "T = 1, guidance 2, batch 1",
        {"guidance": 2.0},
        {
            "lookup": "lookup",
            "jacobi": "jacobi",
            "medusa, coupled": "medusa",
            "hawk heads, coupled": "hawk",
            "hawk-path, coupled": "hawk-path",
        },
    ),
    "wren-86": (
        "speech",
        "T = 1, batch 1",
        {"temperature": 1.0},
        {
            "lookup": "lookup",
            "jacobi": "jacobi",
            "medusa, top-k": "medusa",
            "vadusa, coupled": "vadusa",
            "hawk-path, coupled": "hawk-path",
        },
    ),
    "magpie-135": (
        "vlm",
        "descriptions, T = 0, batch 1",
        {"temperature": 0.0, "task": "descriptions"},
        {"lookup": "lookup", "jacobi": "jacobi", "EAGLE-2 (no decoupling)": "eagle-2", "MSD": "msd"},
    ),
}


def figures(model: str) -> dict:
    """What a model's folder says of its drafters: lossless rows in bf16, one picture, sentence or answer at a time."""
    suite, setting, wanted, labels = MODELS[model]
    source = Path("docs") / "results" / suite / "results.json"
    results = json.loads((ROOT / source).read_text())
    origin = results["provenance"]
    wanted = wanted | {"dtype": "bf16", "batch": 1, "acceptance": "exact"}
    rows = [row for row in results["rows"] if wanted.items() <= row.items() and row["label"] in labels]
    return {
        "source": source.as_posix(),
        "setting": setting,
        "commit": origin["commit"],
        "dtype": "bf16",
        **{key: origin[key] for key in ("device", "processor", "threads", "torch")},
        "drafters": {
            labels[row["label"]]: {key: round(row[key], 2) for key in ("mean_acceptance_length", "speedup")}
            for row in rows
        },
    }


if __name__ == "__main__":
    for model in MODELS:
        (ROOT / "models" / model / "results.json").write_text(json.dumps(figures(model), indent=1) + "\n")
