"""The server's --deterministic reaches every model."""

import pytest
import torch

pytest.importorskip("fastapi")

from mmspec.serve.hosting import load_pipelines


def test_deterministic_pipelines(model_folder, vision_folder) -> None:
    pipes = load_pipelines([str(model_folder), str(vision_folder)], "cpu", torch.bfloat16, deterministic=True)
    assert [pipe.deterministic for _, pipe in pipes.values()] == [True, True]
