"""The text of errors: near matches, and other libraries' errors on one line."""

import pytest

from mmspec.errors import MmspecError, short, unknown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hwak", "unknown drafter 'hwak': did you mean 'hawk'? known are hawk, jacobi, none"),
        ("xyz", "unknown drafter 'xyz': known are hawk, jacobi, none"),
        (7, "unknown drafter 7: known are hawk, jacobi, none"),
    ],
)
def test_unknown(name: object, text: str) -> None:
    error = unknown("drafter", name, {"jacobi", "none", "hawk"})
    assert isinstance(error, MmspecError) and isinstance(error, ValueError) and str(error) == text


def test_unknown_without_choices() -> None:
    assert str(unknown("model", "a", [])) == "unknown model 'a': known are none"


def test_texts_of_other_libraries() -> None:
    """Line breaks and runs of spaces become one space; long texts are cut; an error without a text gives its class."""
    error = RuntimeError("first  line\n\tsecond " + "x" * 500)
    assert short(error).startswith("first line second xxx") and len(short(error)) == 200
    assert short(error, 10) == "first line" and short(KeyError()) == "KeyError"
