"""The generator's sentences."""

import pytest

from datamodules.prompts_text import trimester_prompt
from datamodules.samples import trimester


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (1, "An ultrasound image of a fetal head, first trimester."),
        (2, "An ultrasound image of a fetal head, second trimester."),
        (3, "An ultrasound image of a fetal head, third trimester."),
        (None, "An ultrasound image of a fetal head."),
    ],
)
def test_trimester_prompt(number, sentence):
    assert trimester_prompt(number) == sentence


def test_trimester_prompt_of_a_circumference():
    sentences = [trimester_prompt(trimester(hc_mm)) for hc_mm in (97.9, 98.0, 260.0, None)]
    assert [s.removeprefix("An ultrasound image of a fetal head") for s in sentences] == [
        ", first trimester.",
        ", second trimester.",
        ", third trimester.",
        ".",
    ]
    with pytest.raises(ValueError, match="trimester=4"):
        trimester_prompt(4)
