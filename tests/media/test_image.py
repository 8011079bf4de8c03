"""Pictures that people give: kinds, rotation, transparency, depth, and what is refused."""

import base64
import contextlib
import io
from pathlib import Path

import pytest
from PIL import Image

from mmspec.errors import MmspecError
from mmspec.media import image as picture

RED, BLUE = (200, 30, 30), (30, 30, 200)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def flag() -> Image.Image:
    """Wide, red on the left and blue on the right."""
    found = Image.new("RGB", (40, 20), RED)
    found.paste(BLUE, (20, 0, 40, 20))
    return found


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_kinds(flag: Image.Image, kind: str, tmp_path: Path) -> None:
    """Bytes and a path give the same picture, in RGB."""
    (tmp_path / "flag").write_bytes(saved(flag, kind))
    for source in (saved(flag, kind), tmp_path / "flag", str(tmp_path / "flag"), flag):
        found = picture.read(source)
        assert found.mode == "RGB" and found.size == (40, 20)
        assert all(abs(a - b) < 12 for a, b in zip(found.getpixel((5, 10)), RED))


def test_rotation(flag: Image.Image) -> None:
    """A photo that its EXIF tag turns is read upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    found = picture.read(saved(flag, "JPEG", exif=exif))
    assert picture.read(Image.open(io.BytesIO(saved(flag, "JPEG", exif=exif)))).size == (20, 40)
    assert found.size == (20, 40) and found.getpixel((10, 5))[0] > 150 > found.getpixel((10, 35))[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(mode: str) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    options = {"transparency": 0} if mode == "P" else {}
    assert picture.read(saved(clear.convert(mode), "PNG", **options)).getpixel((4, 4)) == (255, 255, 255)


def test_other_colours(flag: Image.Image) -> None:
    """CMYK, grey, one bit and sixteen bits a pixel."""
    assert picture.read(saved(flag.convert("CMYK"), "JPEG")).getpixel((5, 10))[0] > 150
    assert (
        picture.read(saved(flag.convert("L"), "PNG")).mode
        == picture.read(saved(flag.convert("1"), "PNG")).mode
        == "RGB"
    )
    deep = Image.new("I;16", (4, 4), 32768)
    assert abs(picture.read(saved(deep, "PNG")).getpixel((1, 1))[0] - 128) < 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "cannot be read as a picture"),
        (b"GIF89a broken", "cannot be read as a picture"),
        ("nowhere.png", "no picture at nowhere.png: give a path"),
        (7, "a picture is a PIL image, a path, a URL or bytes, not int"),
        ("http://localhost/a b.png", "could not fetch http://localhost/a b.png"),
        ("~nosuchuser/x.png", "cannot be read as a picture"),
        ("data:image/png;base64,AAA" + "A" * 500, r"^.{0,120}cannot be read as a picture"),
        ("data:image/png,hello", "cannot be read as a picture"),
        ("http://127.0.0.1:9/x.png", "could not fetch http://127.0.0.1:9/x.png"),
    ],
)
def test_what_is_no_picture(source, message: str) -> None:
    with pytest.raises(MmspecError, match=message):
        picture.read(source)


def test_data_urls(flag: Image.Image) -> None:
    url = "data:image/png;base64," + base64.b64encode(saved(flag, "PNG")).decode()
    assert picture.read(url).tobytes() == flag.convert("RGB").tobytes()


@pytest.mark.filterwarnings("ignore:.*EXIF.*", "ignore:Truncated File Read")
def test_broken_tags(flag: Image.Image) -> None:
    """A picture whose EXIF block is damaged anywhere is read all the same, or refused as a picture."""
    tags = Image.Exif()
    tags[0x0112], tags[0x011A], tags[0x010E] = 6, 72.0, "a flag"
    file = io.BytesIO()
    flag.convert("RGB").save(file, "JPEG", exif=tags)
    whole, seen = file.getvalue(), 0
    start = whole.index(b"Exif")
    for place in range(start + 6, start + 6 + len(tags.tobytes())):
        for value in (0, 5, 12, 255):
            with contextlib.suppress(MmspecError):
                seen += picture.read(whole[:place] + bytes([value]) + whole[place + 1 :]).width > 0
    assert seen > 100


def test_a_truncated_picture(flag: Image.Image) -> None:
    with pytest.raises(MmspecError, match="cannot be read as a picture"):
        picture.read(saved(flag.resize((400, 200)), "JPEG")[:700])


@pytest.mark.parametrize("side", [9000, 30000])
def test_bombs(side: int) -> None:
    """A small file of a huge picture is refused before it is unpacked."""
    with pytest.raises(MmspecError, match="pixels"):
        picture.read(saved(Image.new("1", (side, side)), "PNG"))


def test_standard_input(flag: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(saved(flag, "PNG"))))
    assert picture.read("-").size == (40, 20)
