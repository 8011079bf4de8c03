"""Servers that several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_cases import serving

import mmspec


@pytest.fixture(scope="module")
def folders(model_folder: Path, speech_folder: Path, vision_folder: Path) -> tuple[str, ...]:
    return str(model_folder), str(speech_folder), str(vision_folder)


@pytest.fixture(scope="module")
def address(folders, tmp_path_factory) -> Iterator[str]:
    pytest.importorskip("fastapi")
    with serving(
        tmp_path_factory.mktemp("log") / "log", "--models", *folders, "--body", "1", "--text", "500", "--rows", "4"
    ) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def pipes(folders) -> dict:
    tasks = ("text-to-image", "text-to-speech", "image-text-to-text")
    return {task: mmspec.pipeline(task, folder, device="cpu", dtype="fp64") for task, folder in zip(tasks, folders)}
