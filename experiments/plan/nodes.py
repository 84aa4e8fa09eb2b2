"""The words of a plan: a stage and its id, a trial of the grid, and what is known of the data."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from datamodules.choices import DEFAULT as DEFAULT_CHOICE
from datamodules.splits import Split, Unit
from datamodules.storage import content_key
from experiments.config.grid import Cell
from experiments.plan.stage_table import STAGES


@dataclass(frozen=True, kw_only=True)
class Node:
    """A stage to run once: its inputs and the name of its directory."""

    stage: str
    """A key of STAGES."""
    content: dict[str, Any]
    """What its result depends on, as JSON types; hashed."""
    upstream: dict[str, str] = field(default_factory=dict)
    """Directory `stage/id` of each input, by role; hashed."""
    label: str = ""
    """Text for the user."""
    title: str = ""
    """Its subject without the verb, for the labels of stages that read it; the fits have one."""
    slug: str = ""
    """What names of W&B runs call it; empty for the stage's own name."""
    segmenter: str = ""
    """The segmenter's block whose settings it reads, or `config.schema.JUDGE`. Not hashed: what it
    reads of them is in `content`."""
    generator: str = ""
    """The generator's block, likewise."""
    steps: int = 0
    """Units of work, for the estimate of the time left."""

    @property
    def id(self) -> str:
        """16 hexadecimal digits."""
        hashed = {"stage": self.stage, "version": STAGES[self.stage].version}
        return content_key(hashed | {"content": self.content, "upstream": self.upstream})

    @property
    def key(self) -> str:
        """`stage/id`."""
        return f"{self.stage}/{self.id}"


@dataclass(frozen=True, kw_only=True)
class TrialSpec(Cell):
    """A trial of the grid, or a control beside it: its label budget and the stages that do it."""

    pair_labels: str = ""
    """Whose labels the pairs of a generator hold: "own", "fixed", or "" without such pairs."""
    n_generator_labels: int | None = 0
    n_val_labels: int = 0
    n_total_labels: int | None
    """Distinct labelled images behind the row: its own, its generator's, validation's."""
    n_unlabelled: int = 0
    """Unlabelled images that anything of the row saw."""
    fit_key: str | None = None
    """The stage that fits it; None for a control, which nothing is fitted for."""
    score_keys: dict[tuple[str, str], str]
    """The stage that scores it, by test cohort and prompt."""

    @property
    def is_control(self) -> bool:
        """Whether it is a row beside the grid."""
        return self.fit_key is None

    @property
    def arm(self) -> str:
        """Segmenter, condition, generator and choice; the default kinds are not named, so that
        names of finished trials stay."""
        segmenter = "" if self.segmenter == "sam" else self.segmenter
        generator = "" if self.generator == "pixel" else self.generator
        choice = "" if self.choice == DEFAULT_CHOICE else self.choice
        return " ".join(filter(None, (segmenter, self.condition, generator, choice)))

    @property
    def tags(self) -> set[str]:
        """What it is found by on W&B."""
        choice = "" if self.choice == DEFAULT_CHOICE else self.choice
        named = filter(None, (self.segmenter, self.generator, choice))
        return {self.condition, f"n={self.n_real}", *named}

    @property
    def name(self) -> str:
        """A readable name, unique within a sweep."""
        axes = f"-n{self.n_real}-p{self.support}-s{self.seed}-g{self.generator_seed}"
        fold = f"-f{self.fold}" if self.fold else ""
        return self.arm.replace(" ", "-") + ("" if self.is_control else axes) + fold

    @property
    def id(self) -> str:
        """The name and the first digits of what was fitted; a control is scored, not fitted."""
        key = self.fit_key or min(self.score_keys.values())
        return f"{self.name}-{key.split('/')[1][:8]}"

    @property
    def axes(self) -> dict[str, Any]:
        """The axes as columns of a table; a control has neither support nor seed."""
        counted = ("n_real", "n_generator_labels", "n_val_labels", "n_total_labels", "n_unlabelled")
        named = ("condition", "segmenter", "generator", "pair_labels", "choice", *counted, "fold")
        drawn = ("real_fraction", "support", "seed", "generator_seed")
        return {
            "trial_id": self.id,
            **{name: getattr(self, name) for name in named},
            **{name: None if self.is_control else getattr(self, name) for name in drawn},
        }

    @property
    def keys(self) -> tuple[str, ...]:
        """All stages that are this trial's own."""
        return (*([self.fit_key] if self.fit_key else []), *self.score_keys.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Stages in an order in which each follows its inputs, and the trials of the grid."""

    nodes: dict[str, Node]
    trials: list[TrialSpec]
    """Trials of the grid, and the controls after them."""
    notes: list[str] = field(default_factory=list)
    """What of the recipe's grid is left out, a line each."""

    @property
    def grid(self) -> list[TrialSpec]:
        """The trials without the controls."""
        return [spec for spec in self.trials if not spec.is_control]

    def behind(self, keys: Iterable[str]) -> set[str]:
        """Stages and all that they are made from."""
        wanted, found = list(keys), set[str]()
        while wanted:
            key = wanted.pop()
            if key not in found:
                found.add(key)
                wanted += self.nodes[key].upstream.values()
        return found

    def narrowed(self, keys: Iterable[str]) -> "Plan":
        """The part of the plan that leads to certain stages."""
        keep = self.behind(keys)
        nodes = {key: node for key, node in self.nodes.items() if key in keep}
        trials = [spec for spec in self.trials if keep.issuperset(spec.keys)]
        return replace(self, nodes=nodes, trials=trials)


@dataclass(frozen=True, kw_only=True)
class DataView:
    """What a plan needs to know of the data."""

    name: str
    """Cohort of the main data, whose test part is scored under that name."""
    units: dict[str, Unit]
    """Units of the chosen subset by sample id."""
    content: dict[str, str]
    """Content hash by sample id, cohort images included."""
    references: dict[str, str]
    """Hash by sample id of all that a prediction is scored against: content, pixel size, HC."""
    folds: tuple[Split, ...]
    """The split, or one a fold."""
    cohorts: dict[str, list[str]]
    """Sample ids of each external test cohort."""
    unlabelled: Collection[str] = ()
    """Ids of images without annotations that every trial may read beside its unlabelled ones."""
    foreign_pairs: dict[str, str] | None = None
    """Content hash of each pair in `synthesis.folder`, where one is given."""

    @property
    def split(self) -> Split:
        """The split of the first fold."""
        return self.folds[0]
