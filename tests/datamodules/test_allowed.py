"""What a setting may be: each kind of bounds at its ends, and the line of a refusal."""

import math
from dataclasses import dataclass, field
from typing import Literal

import pytest

from datamodules.allowed import above, at_least, between, check_choices, inside, nearest, one_of
from datamodules.errors import InputError

Kind = Literal["whole", "part"]


@dataclass
class Settings:
    """One of each sort."""

    count: int = 1
    share: float | None = None
    shares: tuple[float, ...] = (0.5,)
    kind: Kind = "whole"
    kinds: list[Kind] = field(default_factory=list)
    maybe: Kind | None = None


@pytest.mark.parametrize(
    ("bounds", "inside_", "outside", "words"),
    [
        (at_least(1), (1, 1e9), (0.99, -1), "must be at least 1"),
        (above(0), (1e-9, 7), (0, -1), "must be above 0"),
        (above(0, at_most=1), (1e-9, 1), (0, 1.01), "must be above 0 and at most 1"),
        (between(0, 0.5), (0, 0.5), (-0.01, 0.51), r"must be in \[0, 0.5\]"),
        (inside(0, 1), (0.01, 0.99), (0, 1), "must be above 0 and below 1"),
    ],
)
def test_ends_of_bounds(bounds, inside_, outside, words):
    for value in inside_:
        bounds.check(Settings(count=value, shares=(value, value)), "count", "shares", "share")
    for value in outside:
        with pytest.raises(ValueError, match=f"^count={value}: {words}$"):
            bounds.check(Settings(count=value), "count")
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"^count={value}: must be finite and "):
            bounds.check(Settings(count=value), "count")


def test_a_refusal_names_section_item_and_hint():
    with pytest.raises(ValueError, match=r"^a\.b\.shares=2: must be at least 3 \(why\)$"):
        at_least(3).check(Settings(shares=(3, 2)), "shares", section="a.b", hint="why")
    with pytest.raises(ValueError, match=r"^share=2: must be at least 3, or null$"):
        at_least(3).check(Settings(share=2), "share")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "hole"}, r"^x\.kind=hole: unknown; did you mean whole\?$"),
        ({"kinds": ["part", "zzz"]}, r"^x\.kinds=zzz: unknown; use one of whole, part$"),
        ({"maybe": "parts"}, r"^x\.maybe=parts: unknown; did you mean part\?$"),
    ],
)
def test_choices_are_those_of_the_type(change, said):
    check_choices(Settings(kinds=["part"], maybe="whole"))
    with pytest.raises(ValueError, match=said):
        check_choices(Settings(**change), section="x")


def test_words_of_a_set():
    assert one_of("a", {"a": 1}, option="--k") == "a"
    with pytest.raises(InputError, match=r"^--k aple: unknown; did you mean apple\?$"):
        one_of("aple", {"apple": 1, "pear": 2}, option="--k")


def test_a_number_is_not_taken_for_another_one():
    assert nearest("20", ["5", "10", "0", "5"]) == "use one of 5, 10, 0"
    assert nearest("rel", ["real", "strong"]) == "did you mean real?"
