"""What every stage is given: config, store, data and a place to say how far it is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.embeddings import EmbeddingSet, EmbeddingStore, open_embeddings
from datamodules.index import IndexRow
from datamodules.samples import Sample
from datamodules.synthetic import SyntheticSet, read_synthetic
from experiments.config.schema import ExperimentConfig
from experiments.plan.nodes import Node, TrialSpec
from experiments.store.runs import RunStore, StatusFile
from lightning_modules.segmenters.table import as_predicting, predicting


class StageError(RuntimeError):
    """A stage cannot give a result; one line that says why and what to do."""


@dataclass(kw_only=True)
class StageContext:
    """The inputs of one run of one stage."""

    config: ExperimentConfig
    node: Node
    store: RunStore
    samples: dict[str, Sample]
    """All annotated samples of the sweep by id, external cohorts included."""
    unlabelled: dict[str, Sample] = field(default_factory=dict)
    """Samples without annotations by id; `rows` and `content` hold them too."""
    rows: dict[str, IndexRow]
    """Their index rows."""
    content: dict[str, str]
    """Their content hashes."""
    tags: tuple[str, ...] = ()
    """W&B tags: conditions and amounts that use the run."""
    trials: tuple[TrialSpec, ...] = ()
    """Trials that use the run; a generator and what comes before a fit have none."""
    code: dict[str, str | None] | None = None
    """The code that the sweep runs, where that may be older than what is on the disk by now."""
    batch_parts: int = 1
    """Parts that a batch is computed in, one after the other: above 1 after memory ran out."""

    @property
    def segmenter(self) -> Any:
        """Settings of the segmenter that the stage is about, as it predicts in this stage."""
        settings, content = self.config.segmenter_named(self.node.segmenter), self.node.content
        # A fit is asked as its own augmentation wants it; other stages say how they ask.
        strength = content.get("augment", {}).get("strength")
        values = content.get("predicting", predicting(settings, augment=strength))
        return as_predicting(settings, values)

    @property
    def generator(self) -> Any:
        """Settings of the generator that the stage is about."""
        return self.config.generator_named(self.node.generator)

    @property
    def run_dir(self) -> Path:
        """Directory of this run."""
        return self.store.run_dir(self.node.stage, self.node.id)

    @property
    def cache_dir(self) -> Path:
        """Directory of prepared images, shared by all sweeps of the store."""
        return self.store.root / "store" / "prepared"

    def upstream_dir(self, role: str) -> Path:
        """Directory of an input."""
        return self.store.root / "store" / self.node.upstream[role]

    def upstream_content(self, role: str) -> dict[str, Any]:
        """What an input was made from."""
        return json.loads((self.upstream_dir(role) / "manifest.json").read_text())["content"]

    @property
    def embeddings(self) -> EmbeddingStore:
        """Embeddings of single images, shared by all sweeps of the store."""
        return EmbeddingStore(self.store.root / "store" / "embeddings")

    def open_embeddings(self, role: str) -> EmbeddingSet:
        """The embeddings that an input wrote down."""
        return open_embeddings(self.upstream_dir(role), store=self.embeddings)

    def open_pairs(self, role: str) -> SyntheticSet:
        """The pairs of an input; labels without an image of their own stand beside the real one."""
        originals = self.samples | self.unlabelled
        return read_synthetic(self.upstream_dir(role), originals=originals)

    def pick(self, contents: Sequence[Sequence[str]]) -> list[str]:
        """Ids of a node's `[id, hash]` pairs."""
        return [sample_id for sample_id, _ in contents]

    def picked(self, contents: Sequence[Sequence[str]]) -> list[Sample]:
        """The annotated samples of a node's `[id, hash]` pairs."""
        return [self.samples[sample_id] for sample_id in self.pick(contents)]

    def status(self) -> StatusFile:
        """Where to say how far the run is."""
        return StatusFile(self.run_dir)
