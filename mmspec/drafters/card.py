"""What the README of a drafter's folder says: metadata for the hub, and how the drafter is used."""

from typing import Any

from huggingface_hub import ModelCard, ModelCardData

DRAFTER = """\
# A drafter of the kind {kind}

It guesses what a target model will say ({millions:.1f} million weights), and mmspec verifies the guesses: what comes
out is what the target says without it, sooner.

Made for {target}. With another target the output is still that target's own, but hardly sooner, and one of another size
is refused.

```bash
mmspec info FOLDER --target MODEL    # does it fit?
mmspec verify MODEL --drafters FOLDER --prompts 2 --tokens 32
```

```python
import mmspec

pipe = mmspec.pipeline(TASK, MODEL)
out = pipe(PROMPT, drafter=FOLDER)  # this folder, or its hub id
print(out.stats.mean_acceptance_length)
```
"""

RELEASE = """\
# A drafter of the kind {kind}, in the format {form}

For speculative decoding with `{verifier}`. The format is that of {readers}. mmspec wrote it and reads it, too:

```bash
mmspec info FOLDER --target {verifier}     # does it fit?
mmspec verify {verifier} --drafters FOLDER --prompts 2 --tokens 32
{serve}
```
{lost}"""

# How vLLM is started with a drafter of a format.
SERVE = {
    "speculators": "vllm serve FOLDER",
    "eagle": "vllm serve {} --speculative-config "
    """'{{"model": "FOLDER", "method": "eagle", "num_speculative_tokens": 4}}'""",
    "medusa": """vllm serve {} --speculative-config '{{"model": "FOLDER", "method": "medusa"}}'""",
}


def make_card(text: str, tags: list[str], metadata: dict[str, Any]) -> ModelCard:
    """A card of a text below its metadata."""
    data = ModelCardData(library_name="mmspec", tags=["speculative-decoding", *tags], **metadata)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def drafter_card(kind: str, target_hash: str, weights: int, metadata: dict[str, Any]) -> ModelCard:
    """The card of a drafter that mmspec saved; `target_hash` names the weights that it was trained with."""
    base = metadata.get("base_model")
    names = [f"`{base}`"] if base else []
    names += [f"the weights `{target_hash}`"] if target_hash else []
    text = DRAFTER.format(kind=kind, target=", ".join(names) or "a target that is not named", millions=weights / 1e6)
    return make_card(text, [kind], metadata)


def release_card(
    kind: str, form: str, readers: str, verifier: str, lost: list[str], base_model: str | None
) -> ModelCard:
    """The card of a drafter that was exported: who reads it, and what was lost; `base_model` is the target's hub id."""
    phrases = "".join(f"\n- {phrase}" for phrase in lost)
    text = RELEASE.format(
        kind=kind,
        form=form,
        readers=readers,
        verifier=verifier,
        serve=SERVE[form].format(verifier),
        lost=f"\nWhat this format does not carry:\n{phrases}\n" if lost else "",
    )
    return make_card(text, [kind, form], {"base_model": base_model} if base_model else {})
