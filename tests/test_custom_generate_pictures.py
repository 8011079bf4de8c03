"""Pictures and sounds inside `generate` of transformers: the tokens of `generate`, or refused."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from vlm_families import FAMILIES, asked, model

import mmspec
from mmspec.errors import MmspecError

QUICK = ("llava", "qwen3_vl", "gemma3")
# Their processors give patches of all rows, so that rows may have as many pictures as they like.
PATCHES = ("qwen2_vl", "qwen3_vl", "glm4v")
LENGTH = 12


def joined(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows as one batch, padded on the left."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    batch = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        if len(values) == len(rows) and all(v.shape[:2] == r["input_ids"].shape for v, r in zip(values, rows)):
            values = [F.pad(value, (longest - value.shape[1], 0)) for value in values]
        batch[name] = torch.cat(values)
    return batch


def said(name: str, inputs: dict[str, Tensor], **options) -> list[list[int]]:
    options = {"do_sample": False} | options
    out = model(name).generate(**inputs, max_new_tokens=LENGTH, pad_token_id=0, **options)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow, pytest.mark.sweep]) for name in FAMILIES],
)
def test_pictures(name: str) -> None:
    """One row, three of different length, and two answers to each of these."""
    rows = [asked(name, sizes, seed) for seed, sizes in enumerate([[(2, 3)], [(1, 2)], [(2, 2)]])]
    alone = [said(name, row)[0] for row in rows]
    try:
        batch = joined(rows)
    except RuntimeError:  # pictures of different shapes, which its processor would pad
        batch, rows, alone = rows[0], rows[:1], alone[:1]
    for drafter in ("none", "lookup"):
        custom = {"custom_generate": mmspec.speculate(drafter)}
        assert said(name, rows[0], **custom) == alone[:1]
        assert said(name, batch, **custom) == alone
    most_probable = dict(do_sample=True, top_k=1, num_return_sequences=2)
    twice = said(name, batch, custom_generate=mmspec.speculate("jacobi"), **most_probable)
    assert twice == [answer for answer in alone for _ in range(2)]


@pytest.mark.parametrize("name", PATCHES)
def test_rows_with_several_pictures_and_none(name: str) -> None:
    rows = [asked(name, sizes, seed) for seed, sizes in enumerate([[(1, 2), (3, 2)], [(2, 3)], []])]
    alone = [said(name, row)[0] for row in rows]
    assert said(name, joined(rows), custom_generate=mmspec.speculate("jacobi")) == alone


@pytest.mark.parametrize("name", ["llava", "qwen2_audio"])
def test_what_cannot_be_told_apart(name: str) -> None:
    """As many pictures or sounds as rows, which are not one a row."""
    rows = [asked(name, sizes, seed) for seed, sizes in enumerate([[(1, 2), (3, 2)], [(2, 3)], []])]
    with pytest.raises(MmspecError, match="3 entries for 3 rows, of which 2 have pictures or sounds"):
        said(name, joined(rows), custom_generate=mmspec.speculate("none"))


def test_videos() -> None:
    row = asked("qwen2_vl", [(2, 3)])
    video = {"input_ids": torch.where(row["input_ids"] == 60, 59, row["input_ids"])}
    video |= {"pixel_values_videos": row["pixel_values"], "video_grid_thw": row["image_grid_thw"]}
    with pytest.raises(MmspecError, match="videos are not supported"):
        said("qwen2_vl", video, custom_generate=mmspec.speculate("none"))
