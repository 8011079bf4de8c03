"""Which tabs and models a demo shows, found out before anything heavy is loaded."""

from collections.abc import Iterable

from mmspec import zoo
from mmspec.errors import MmspecError, unknown
from mmspec.pipelines import TASKS, task_of

# The tabs in the order of the page, and the task that each needs a model for.
TABS = {"Image": "text-to-image", "Speech": "text-to-speech", "Ask": "image-text-to-text", "Race": "", "How": ""}


def choose_tabs(names: Iterable[str]) -> list[str]:
    """The tabs with these names, in any case; empty if none is named."""
    known = {tab.lower(): tab for tab in TABS}
    for name in names:
        if name.lower() not in known:
            raise unknown("tab", name, known)
    return [known[name.lower()] for name in names]


def choose_models(names: Iterable[str], tabs: list[str]) -> dict[str, str]:
    """The model for each task, of those named or of every bundled one; only those that the tabs need, if any is named.

    A name of the hub is downloaded.
    """
    needed = {TABS[tab] for tab in tabs} - {""}
    chosen: dict[str, str] = {}
    for name in tuple(names) or zoo.bundled():
        task = task_of(zoo.resolve(name, allow_transformers=True))
        if tabs and "Race" not in tabs and task not in needed:
            continue
        if task in chosen:
            raise MmspecError(f"{name} and {chosen[task]} are both for {task}: name one")
        chosen[task] = name
    for task in sorted(needed - chosen.keys()):
        raise MmspecError(f"no model for {task} is named: name one, such as {TASKS[task][1]}")
    if not chosen and (not tabs or "Race" in tabs):
        raise MmspecError("no model is bundled here: name one")
    return chosen
