"""The conditions: what a trial is trained on beside its real images. One row each; torch-free.

Nothing else in the code asks for a condition's name: what it needs to know is a factor here, and a
recipe may compose conditions of its own from the same factors
(`conditions: {warp_strong: {pairs: warp, augment: strong}}`).
"""

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from datamodules.allowed import at_least
from datamodules.config import AUGMENT_EXTRAS, AUGMENT_PARTS
from experiments.config.names import check_known

LabelSource = Literal["own", "fixed"]
PairOrder = Literal["drawn", "hardest"]
GateUse = Literal["on", "off", "random_subset"]
Augmentation = Literal["none", "weak", "moderate", "strong"]
ImageSource = Literal["labelled", "unlabelled"]


@dataclass(frozen=True, kw_only=True)
class PairSource:
    """What makes the pairs that a condition adds."""

    stage: str | None = None
    """The stage that makes them of labelled images alone; None where none does."""
    called: str = ""
    """What labels of stages call them."""
    is_generated: bool = False
    """Whether a generator makes them."""
    has_generator: bool = False
    """Whether they differ with the generator, be it only by its size."""
    is_pseudo: bool = False
    """Whether unlabelled images with the labels of a teacher are among them."""

    @property
    def is_made(self) -> bool:
        """Whether a set of pairs is made, by a generator or by the stage."""
        return self.is_generated or self.stage is not None


PAIRS: dict[str, PairSource] = {
    "none": PairSource(),
    "repeat": PairSource(),
    "warp": PairSource(stage="warp", called="warped"),
    "phantom": PairSource(stage="phantom", called="procedural"),
    "resized": PairSource(stage="resize", called="resized", has_generator=True),
    "synthetic": PairSource(is_generated=True, has_generator=True),
    "pseudo": PairSource(is_pseudo=True),
    "pseudo_synthetic": PairSource(is_generated=True, has_generator=True, is_pseudo=True),
}


@dataclass(kw_only=True)
class ConditionConfig:
    """A condition by its factors."""

    pairs: str = "none"
    """What is added to the real images, a row of `PAIRS`: nothing (`none`); the same images once
    more (`repeat`); deformed copies (`warp`); procedural heads (`phantom`); the generator's real
    images at the generator's size (`resized`); pairs of a generator (`synthetic`); unlabelled
    images with the labels of a teacher (`pseudo`); these and a generator's pairs in equal parts
    (`pseudo_synthetic`)."""
    labels: LabelSource = "own"
    """Whose labels those pairs come from: the trial's own, or a fixed number of them
    (`synthesis.generator_count`), whatever the trial has."""
    gate: GateUse = "on"
    """Which of the generator's candidates are taken: those that pass the gate, all, or as many at
    random as the gate keeps."""
    at_most: int | None = None
    """The most of those pairs that are used, the first ones; None: all."""
    order: PairOrder = "drawn"
    """Which come first: as they were drawn, or those on whose label the gate's judge agrees
    least."""
    augment: Augmentation = "none"
    """How strongly training images are augmented, and added pairs whose embeddings are not
    cached."""
    without: list[str] = field(default_factory=list)
    """Operations, of `AUGMENT_PARTS`, that the augmentation leaves out."""
    extra: list[str] = field(default_factory=list)
    """Operations, of `AUGMENT_EXTRAS`, that it has besides."""
    images: ImageSource = "labelled"
    """What a generator is fitted on: the trial's labelled images, or these and the unlabelled ones
    with the labels of a teacher."""
    rounds: int = 0
    """Rounds of self-training behind those labels: the first teacher is the trial's own student
    under `strong`, each later one the student of the round before. 0: no unlabelled image."""

    def __post_init__(self) -> None:
        """Refuse factors that nothing would read, or that contradict each other."""
        check_known([self.pairs], known=PAIRS, key="pairs")
        check_known(self.without, known=AUGMENT_PARTS, key="without")
        check_known(self.extra, known=AUGMENT_EXTRAS, key="extra")
        at_least(1).check(self, "at_most")
        source, pairs = self.source, f"pairs={self.pairs}"
        if self.gate != "on" and not source.is_generated:
            self._refuse("gate", f"{pairs} pass no gate; leave it out")
        if self.labels != "own" and not source.has_generator:
            self._refuse("labels", f"{pairs} are made from the trial's own labels")
        if self.pairs == "repeat" and self.augment != "none":
            self._refuse("augment", "pairs=repeat is the control of unchanged images; use none")
        if self.at_most is not None and (source.is_pseudo or not source.is_made):
            self._refuse("at_most", f"{pairs} makes none; leave it out")
        if self.order != "drawn" and not source.is_generated:
            self._refuse("order", f"{pairs} pass no gate; leave it out")
        if self.order != "drawn" and (self.at_most is None or self.gate != "on"):
            self._refuse("order", "needs at_most and gate=on")
        for factor in ("without", "extra"):
            if getattr(self, factor) and self.augment == "none":
                self._refuse(factor, "augment=none has no parts; leave it out")
        if self.images == "unlabelled" and not source.is_generated:
            self._refuse("images", f"{pairs} fit no generator; leave it out")
        if self.uses_unlabelled and self.labels != "own":
            why = "unlabelled images get their labels from the trial's own student; use labels=own"
            self._refuse("labels", why)
        if self.uses_unlabelled and self.rounds < 1:
            self._refuse("rounds", "unlabelled images need at least 1")
        if not self.uses_unlabelled and self.rounds != 0:
            self._refuse("rounds", f"{pairs} use no unlabelled image; leave it out")

    def _refuse(self, factor: str, why: str) -> None:
        raise ValueError(f"{factor}={getattr(self, factor)}: {why}")

    @property
    def source(self) -> PairSource:
        """What makes its pairs."""
        return PAIRS[self.pairs]

    @property
    def pair_labels(self) -> str:
        """Whose labels a generator's pairs come from: own, fixed, or "" without a generator."""
        return self.labels if self.source.has_generator else ""

    @property
    def draws_outlines(self) -> bool:
        """Whether pairs of it lie on new outlines, in images of `synthesis.image_hw`."""
        row = self.source
        return row.is_generated or (row.is_made and not row.has_generator)

    @property
    def is_gated(self) -> bool:
        """Whether a judge looks at its pairs."""
        return self.source.is_generated and self.gate != "off"

    @property
    def n_sets(self) -> int:
        """Sets of pairs beside its real images; none where these stand for pairs themselves."""
        return self.source.is_pseudo + self.source.is_made

    @property
    def uses_unlabelled(self) -> bool:
        """Whether anything of it reads unlabelled images."""
        return self.source.is_pseudo or self.images == "unlabelled"


def share_of_pairs(share: float, *, n_sets: int) -> float:
    """Share of a batch that all sets of pairs fill, each of which alone would fill `share`, in its
    proportion to the real images: of a half, two sets fill two thirds."""
    return n_sets * share / (1 - share + n_sets * share) if n_sets > 1 else share


@dataclass(frozen=True, kw_only=True)
class ConditionRow:
    """A built-in condition: its factors, and how it is shown."""

    factors: ConditionConfig
    label: str
    """In tables and legends."""
    phrase: str
    """Within a sentence."""
    color: str
    """In figures. The baseline is black and the synthetic lines have the strongest colours."""
    marker: str
    """In figures; what colour-blind readers may take for one another has another one."""
    note: str = ""
    """Below a table, where the label does not say enough."""


def _row(
    label: str, phrase: str, color: str, marker: str, note: str = "", **factors: str | int
) -> ConditionRow:
    given = ConditionConfig(**factors)
    return ConditionRow(
        factors=given, label=label, phrase=phrase, color=color, marker=marker, note=note
    )


CONDITIONS: dict[str, ConditionRow] = {
    "real": _row("real only", "real pairs alone", "#222222", "o"),
    "real_repeated": _row(
        "real, repeated", "repeating the real pairs", "#949494", "v", pairs="repeat"
    ),
    "weak": _row("weak augmentation", "weak augmentation", "#029e73", "^", augment="weak"),
    "strong": _row("strong augmentation", "strong augmentation", "#cc78bc", "D", augment="strong"),
    "warp": _row("+ warped pairs", "warped pairs", "#ca9161", "<", pairs="warp"),
    "phantom": _row("+ phantom pairs", "phantom pairs", "#56b4e9", ">", pairs="phantom"),
    "synthetic": _row(
        "+ synthetic", "synthetic pairs", "#0173b2", "s", pairs="synthetic", labels="fixed"
    ),
    "synthetic_same_budget": _row(
        "+ synthetic, same labels",
        "synthetic pairs on the same label budget",
        "#de8f05",
        "P",
        pairs="synthetic",
    ),
    "synthetic_same_budget_strong": _row(
        "+ synthetic, same labels, strong",
        "synthetic pairs on the same label budget, strongly augmented,",
        "#d55e00",
        "X",
        pairs="synthetic",
        augment="strong",
    ),
    "real_resized": _row(
        "+ real pairs at the generator's size",
        "real pairs at the generator's size",
        "#8c3b6a",
        "d",
        "+ real pairs at the generator's size: the labelled images of the generator, passed "
        "through its resolution, in the place of its synthetic pairs.",
        pairs="resized",
        labels="fixed",
    ),
    "synthetic_no_gate": _row(
        "+ synthetic, no gate",
        "synthetic pairs without a gate",
        "#5b3fa0",
        "p",
        pairs="synthetic",
        labels="fixed",
        gate="off",
    ),
    "synthetic_random_subset": _row(
        "+ synthetic, random subset",
        "a random subset of the synthetic pairs",
        "#7f9a1f",
        "h",
        pairs="synthetic",
        labels="fixed",
        gate="random_subset",
    ),
    "self_training": _row(
        "self-training",
        "self-training",
        "#117733",
        r"$\diamondsuit$",
        pairs="pseudo",
        augment="strong",
        rounds=1,
    ),
    "self_training_2": _row(
        "self-training, two rounds",
        "self-training in two rounds",
        "#6b8e23",
        "1",
        pairs="pseudo",
        augment="strong",
        rounds=2,
    ),
    "synthetic_unlabelled": _row(
        "+ synthetic, unlabelled images",
        "synthetic pairs of a generator that saw unlabelled images",
        "#882255",
        r"$\spadesuit$",
        pairs="synthetic",
        augment="strong",
        images="unlabelled",
        rounds=1,
    ),
    "synthetic_unlabelled_2": _row(
        "+ synthetic, unlabelled images, two rounds",
        "synthetic pairs of a generator that saw unlabelled images, labelled twice,",
        "#aa4499",
        r"$\clubsuit$",
        pairs="synthetic",
        augment="strong",
        images="unlabelled",
        rounds=2,
    ),
    "synthetic_unlabelled_self_training": _row(
        "self-training + synthetic, unlabelled images",
        "self-training with synthetic pairs of a generator that saw unlabelled images",
        "#332288",
        r"$\bigstar$",
        pairs="pseudo_synthetic",
        augment="strong",
        images="unlabelled",
        rounds=1,
    ),
}
"""In the order of a table's block."""


@dataclass(frozen=True, kw_only=True)
class ControlRow:
    """A row beside the conditions, for which nothing is fitted, and how it is shown."""

    label: str
    """In tables and legends."""
    color: str
    """In figures."""
    marker: str
    note: str
    """Below a table."""
    is_box_alone: bool = False
    """Whether it scores the prompt's box alone."""
    has_segmenter: bool = False
    """Whether it is a row of a segmenter, and not of the data alone."""


CONTROLS: dict[str, ControlRow] = {
    "box_only": ControlRow(
        label="box only (no image)",
        color="#444444",
        marker="_",
        note="Box only (no image): an ellipse inscribed in the prompt box, no pixel read. Its "
        "score comes from the prompt alone.",
        is_box_alone=True,
    ),
    "mean_mask": ControlRow(
        label="constant mean mask",
        color="#6b6b6b",
        marker="|",
        note="Constant mean mask: the training masks made into one for every image, no pixel and "
        "no prompt read.",
    ),
    "zero_shot": ControlRow(
        label="zero-shot backbone",
        color="#a0522d",
        marker="x",
        note="Zero-shot backbone: the published weights, not fitted on any image here.",
        has_segmenter=True,
    ),
}
"""They close a block."""
BOX_ALONE = [name for name, row in CONTROLS.items() if row.is_box_alone]
"""Controls that score the prompt's box alone."""
# A view, so that rows which an extension adds later are there; a chain begins with its last table.
ROWS: Mapping[str, ConditionRow | ControlRow] = ChainMap(CONTROLS, CONDITIONS)
"""In the order of a table's block; the conditions that a recipe composes stand between the two."""


def condition_label(name: str) -> str:
    """What tables and legends call a condition or control; a recipe's own has its own name."""
    return ROWS[name].label if name in ROWS else name


def condition_phrase(name: str) -> str:
    """What a sentence calls a condition."""
    return CONDITIONS[name].phrase if name in CONDITIONS else condition_label(name)


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: the table's conditions in its order, a recipe's own, then the controls."""
    present = list(dict.fromkeys(names))
    own = [name for name in present if name not in ROWS]
    return [name for name in [*CONDITIONS, *own, *CONTROLS] if name in present]
