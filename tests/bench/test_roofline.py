"""What passes must cost at least: sizes of published models, and which limit binds."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

from mmspec.bench.roofline import CARDS, MODELS, Card, Shape, main

# Billions of weights that a pass of the language model reads: published sizes without input embeddings and vision.
SIZES = {
    "Janus-Pro-7B": 6.1 + 0.07,
    "LLaVA-1.5-7B": 6.61,
    "Qwen2.5-VL-7B": 7.07,
    "CosyVoice 2 (0.5B)": 0.364,
    "Llasa-1B": 0.973 + 0.397,
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_models(name: str) -> None:
    shape = next(shape for shape in MODELS if shape.name == name)
    assert shape.weights / 1e9 == pytest.approx(SIZES[name], rel=0.02)


def test_a_configuration_of_transformers() -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    shape = Shape.of("tiny", config, 100, branches=2, context=10)
    assert shape.weights == 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160) + 100 * 64
    assert shape.bytes(1) == 2 * (shape.weights + 2 * 2 * 3 * 2 * 16 * 11)
    assert shape.flops(4) == 2 * 4 * (2 * shape.weights + 4 * 3 * 4 * 16 * 14)


def test_what_binds() -> None:
    """Memory binds narrow passes, arithmetic wide ones of slow cards, launches small models that run eagerly."""
    large, small = (next(shape for shape in MODELS if shape.name.startswith(name)) for name in ("LLaVA", "CosyVoice"))
    card = CARDS[0]
    assert large.binding(1, card, True) == "memory"
    assert small.binding(1, card, False) == "launches"
    assert large.binding(64, Card("slow", 1e12, 1e12), True) == "arithmetic"
    assert large.seconds(64, card, True) >= large.seconds(1, card, True)
    few, many = (small.speedup(16, 4.0, card, True, count) for count in (20, 776))
    assert many < few < 4.0


def test_the_table_says_that_it_is_an_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(tmp_path / "roofline.md")
    text = (tmp_path / "roofline.md").read_text()
    assert "estimate" in text.splitlines()[0]
    assert all(f"| {shape.name} |" in text for shape in MODELS)
    assert all(f"## {card.name}" in text for card in CARDS)
    assert text in capsys.readouterr().out
