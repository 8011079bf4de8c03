"""VQGAN checkpoints in the original layout decode as the layout says, and what is missing or wrong is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_vqgan import DEEP, PLAIN, vqgan_pixels, vqgan_state, write_vqgan

from mmspec.codecs.base import ImageTokenizer
from mmspec.codecs.vqgan import VQGANConfig, VQGANTokenizer
from mmspec.errors import MmspecError

CODEBOOK = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


def state(ddconfig: dict = PLAIN) -> dict[str, torch.Tensor]:
    """Weights, quiet enough at their end that pictures keep within -1..1 in most places."""
    weights = vqgan_state(ddconfig, CODEBOOK)
    weights["decoder.conv_out.weight"] *= 0.3
    return weights


@pytest.mark.parametrize("ddconfig", [PLAIN, DEEP], ids=["plain", "attention"])
def test_pictures_are_those_of_the_layout(tmp_path: Path, ddconfig: dict) -> None:
    """equality: with a forward written from the names alone (fp64), on grids of any size; as a picture, to the byte."""
    weights = state(ddconfig)
    decoder = VQGANTokenizer.from_pretrained(write_vqgan(tmp_path, weights, ddconfig))
    assert isinstance(decoder, ImageTokenizer)
    assert (decoder.codes, decoder.scale) == (20, 2 ** (len(ddconfig["ch_mult"]) - 1))
    for seed, shape in enumerate(((1, 4, 4), (3, 2, 5))):
        codes = torch.randint(20, shape, generator=torch.Generator().manual_seed(seed))
        expected = vqgan_pixels(weights, codes).clamp(-1, 1)
        assert expected.std() > 0.1 and (expected.abs() < 1).float().mean() > 0.7
        found = decoder.double().decode(codes)
        assert found.shape == expected.shape == (shape[0], 3, shape[1] * decoder.scale, shape[2] * decoder.scale)
        assert (found - expected).abs().max() < 1e-12
        assert (decoder.float().decode(codes) - expected).abs().max() < 1e-4


def test_layouts_and_round_trip(tmp_path: Path) -> None:
    """round trip: safetensors, a bare state dict, half precision, and what is saved hold the same decoder."""
    weights, codes = state(DEEP), torch.arange(16).view(1, 4, 4)
    first = VQGANTokenizer.from_pretrained(write_vqgan(tmp_path / "a", weights, DEEP))
    expected = first.decode(codes)
    first.save_pretrained(tmp_path / "b")
    shape = VQGANConfig.read(tmp_path / "a" / "vqgan.yaml")
    assert VQGANConfig.read(tmp_path / "b" / "vqgan.yaml") == shape
    save_file(weights, tmp_path / "c.safetensors")
    torch.save(weights, tmp_path / "d.ckpt")
    for file in (tmp_path / "b" / "vqgan.safetensors", tmp_path / "c.safetensors", tmp_path / "d.ckpt"):
        assert torch.equal(VQGANTokenizer.from_pretrained(file, shape).decode(codes), expected)
    save_file({name: value.bfloat16() for name, value in weights.items()}, tmp_path / "e.safetensors")
    half = VQGANTokenizer.from_pretrained(tmp_path / "e.safetensors", shape)
    assert half.codebook.dtype == torch.float32 and (half.decode(codes) - expected).abs().max() < 0.2


def test_what_is_refused(tmp_path: Path) -> None:
    """Tensors that are missing, left over or of another shape; no shape; other decoders; pickles of objects."""
    file = write_vqgan(tmp_path, state())

    def refused(text: str, **changes: object) -> None:
        kept = {name: value for name, value in (state() | changes).items() if value is not None}
        write_vqgan(tmp_path, kept)
        with pytest.raises(MmspecError, match=text):
            VQGANTokenizer.from_pretrained(file)

    refused(r"vqgan.ckpt lacks decoder.mid.attn_1.k.bias: give", **{"decoder.mid.attn_1.k.bias": None})
    refused(
        "has more tensors than its configuration says: decoder.up.0.attn.0.q.bias",
        **{"decoder.up.0.attn.0.q.bias": torch.zeros(2)},
    )
    refused(
        r"decoder.conv_in.weight is \(64, 9, 3, 3\), and \(64, 8, 3, 3\) is expected",
        **{"decoder.conv_in.weight": torch.zeros(64, 9, 3, 3)},
    )
    encoder = {name: value for name, value in state().items() if not name.startswith("decoder.")}
    write_vqgan(tmp_path, encoder)
    with pytest.raises(MmspecError, match="lacks decoder.conv_in.bias, .* and .* more"):
        VQGANTokenizer.from_pretrained(file)
    for wrong, text in (
        ({"tanh_out": True}, "vqgan.yaml has tanh_out True, with which mmspec cannot decode"),
        ({"ch": 20}, "no multiple of 32"),
        ({"ch_mult": None}, "vqgan.yaml does not describe a VQGAN"),
    ):
        write_vqgan(tmp_path, state(), PLAIN | wrong)
        with pytest.raises(MmspecError, match=text):
            VQGANTokenizer.from_pretrained(file)
    (tmp_path / "vqgan.yaml").write_text("model: [")
    with pytest.raises(MmspecError, match="vqgan.yaml does not describe a VQGAN"):
        VQGANTokenizer.from_pretrained(file)
    (tmp_path / "vqgan.yaml").unlink()
    with pytest.raises(MmspecError, match="has no vqgan.yaml beside it"):
        VQGANTokenizer.from_pretrained(file)
    torch.save({"state_dict": {}, "callback": Path("x")}, file)
    with pytest.raises(MmspecError, match="cannot be read .* a pickle of tensors alone"):
        VQGANTokenizer.from_pretrained(file, VQGANConfig(20, 6, 8, 8, 32, (1, 2), 1))
    (tmp_path / "vqgan.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(MmspecError, match="vqgan.safetensors cannot be read"):
        VQGANTokenizer.from_pretrained(tmp_path / "vqgan.safetensors", VQGANConfig(20, 6, 8, 8, 32, (1, 2), 1))
