"""The sentence that a text-to-image generator is trained and prompted with."""

from typing import Literal

_SUBJECT = "An ultrasound image of a fetal head"
_TRIMESTERS = {1: "first", 2: "second", 3: "third"}


def trimester_prompt(trimester: Literal[1, 2, 3] | None) -> str:
    """Return the paper's sentence for a trimester as `datamodules.samples.trimester` gives it.

    Args:
        trimester: 1, 2 or 3; None where there is no head circumference, which leaves that part out.

    Raises:
        ValueError: Another trimester.

    Source:
        arXiv 2506.23664, data preparation.
    """
    if trimester is None:
        return f"{_SUBJECT}."
    if trimester not in _TRIMESTERS:
        raise ValueError(f"trimester={trimester}: use 1, 2, 3, or None where it is unknown")
    return f"{_SUBJECT}, {_TRIMESTERS[trimester]} trimester."
