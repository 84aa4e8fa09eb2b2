"""The stages of a plan: what each is made from, so that equal work has one id."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from datamodules.choices import choice_order
from datamodules.config import AUGMENT_VERSION
from datamodules.errors import InputError
from experiments.config.conditions import ConditionConfig
from experiments.config.grid import Cell
from experiments.config.schema import JUDGE, ExperimentConfig
from experiments.plan.nodes import DataView, Node
from lightning_modules.segmenters.table import predicting, row_of

UNNAMED = ("", "sam", JUDGE)
"""Segmenters that labels do not name: the one that most sweeps have, and the gate's."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A set of pairs that a condition adds: the stage that made it, and whose labels it holds."""

    key: str
    embedded: str = ""
    """The stage whose pairs are embedded instead: where a gate chose, all that it chose from."""
    n: int
    what: str
    """Their number and a readable name."""
    label_ids: list[str] = field(default_factory=list)
    """Labelled images behind them."""
    is_foreign: bool = False
    unlabelled_ids: list[str] = field(default_factory=list)
    """Unlabelled images behind them."""


EMBEDDINGS_OF = {"pairs": "pair_embeddings", "more_pairs": "more_pair_embeddings"}
"""Role of a set of pairs in a fit, and of its embeddings. Two fill as many places of a batch."""


class Nodes:
    """Makes stages and keeps each once."""

    def __init__(self, config: ExperimentConfig, data: DataView) -> None:
        self.config, self.data = config, data
        self.nodes: dict[str, Node] = {}
        # Settings of a segmenter and of a generator by the names of their blocks.
        self.settings = cache(config.segmenter_named)
        self.generator = cache(config.generator_named)
        self._order = cache(self._order_of)

    def add(self, node: Node) -> str:
        self.nodes.setdefault(node.key, node)
        return node.key

    def images_of(self, cell: Cell) -> list[str]:
        """Its labelled images: the first train images in the order of its choice and support."""
        return self._order(cell.choice, cell.support, cell.fold)[: cell.n_real]

    def _order_of(self, choice: str, support: int, fold: int) -> list[str]:
        units = [self.data.units[sample_id] for sample_id in self.data.folds[fold].train]
        return choice_order(units, choice=choice, support=support)

    def unlabelled(self, cell: Cell) -> list[str]:
        """What a trial may read without labels: train images beyond its own, and those that have
        no annotation at all."""
        own, train = set(self.images_of(cell)), self.data.folds[cell.fold].train
        left = [sample_id for sample_id in train if sample_id not in own]
        return [*left, *self.data.unlabelled]

    def validation(self, cell: Cell) -> list[str]:
        """The validation images whose labels a fit reads; none without early stopping."""
        uses = self.settings(cell.segmenter).early_stopping_patience is not None
        return list(self.data.folds[cell.fold].val) if uses else []

    def contents(self, ids: Sequence[str]) -> list[list[str]]:
        return [[sample_id, self.data.content[sample_id]] for sample_id in ids]

    def references(self, ids: Sequence[str]) -> list[list[str]]:
        return [[sample_id, self.data.references[sample_id]] for sample_id in ids]

    def encoder(self, segmenter: str, *, cache: str = "embedding") -> dict[str, Any]:
        """What an embedding depends on beside its image; the kind must have a frozen encoder."""
        settings = self.settings(segmenter)
        found: dict[str, Any] = {
            "backbone": settings.backbone,
            "weights_sha256": self.weights_id(segmenter),
            "precision": settings.encoder_precision,
        }
        if settings.geometry != "pad":
            found["geometry"] = settings.geometry
        if cache == "features":
            found["features"] = "late_lora"
        return found

    def weights_id(self, segmenter: str) -> str | None:
        """Names the weights that a segmenter starts from; None where its seed makes them."""
        settings = self.settings(segmenter)
        weights_id = row_of(settings).weights_id
        return None if weights_id is None else weights_id(settings)

    def predicting(self, fit_key: str, *, segmenter: str) -> dict[str, Any]:
        """What predictions of a fit depend on beside it, for the content of stages that predict.

        Blocks that differ in this alone share their fits, so `segmenter` names the one that is
        meant.
        """
        augment = self.nodes[fit_key].content.get("augment", {}).get("strength")
        found = predicting(self.settings(segmenter), augment=augment)
        return {"predicting": found} if found else {}

    def embed(
        self,
        ids: Sequence[str],
        *,
        what: str,
        segmenter: str,
        strength: str | None = None,
        cache: str = "embedding",
    ) -> str:
        """Embeddings of real images, with augmented views where a strength is given."""
        content: dict[str, Any] = {
            "images": self.contents(sorted(ids)),
            "encoder": self.encoder(segmenter, cache=cache),
        }
        n, label = len(ids), f"embed {len(ids)} {what}"
        if strength is not None:
            # A mirror image is one view beside the image itself.
            n_views = 2 if strength == "mirror" else self.config.augment.views_at(len(ids))
            content["augment"] = {"strength": strength, "n_views": n_views}
            if strength != "mirror":
                content["augment"]["version"] = AUGMENT_VERSION
            n, label = n * n_views, f"embed {n_views - 1} {strength} views of {n} {what}"
        node = Node(stage="embed", content=content, label=label, steps=n, segmenter=segmenter)
        return self._named(node)

    def embed_pairs(self, pairs: Pairs, *, segmenter: str, cache: str = "embedding") -> str:
        """Embeddings of the pairs that a condition may add."""
        node = Node(
            stage="embed",
            content={"encoder": self.encoder(segmenter, cache=cache)},
            upstream={"pairs": pairs.embedded or pairs.key},
            label=f"embed {pairs.n} {pairs.what}",
            steps=pairs.n,
            segmenter=segmenter,
        )
        return self._named(node)

    def _named(self, node: Node) -> str:
        """Add a stage under a label that names its segmenter, where that is not the usual one."""
        if node.segmenter not in UNNAMED:
            node = replace(node, label=f"{node.label} ({node.segmenter})")
        return self.add(node)

    def fit(
        self, factors: ConditionConfig, *, cell: Cell, ids: list[str], sets: Sequence[Pairs] = ()
    ) -> str:
        """The stage that fits the cell's segmenter on these images and sets of pairs."""
        segmenter, settings = cell.segmenter, self.settings(cell.segmenter)
        repeats = factors.pairs == "repeat"
        content: dict[str, Any] = {
            "segmenter": settings.hashed(),
            "images": self.contents(ids),
            "val": self.contents(self.validation(cell)),
            "seed": cell.seed,
            "repeat_real": repeats,
        }
        if not sets and not repeats:
            content["segmenter"].pop("synthetic_share", None)
        if factors.at_most is not None:
            content["at_most"] = factors.at_most
        if factors.order != "drawn":
            content["order"] = factors.order
        weights_id = self.weights_id(segmenter)
        if weights_id is not None:
            content["weights_sha256"] = weights_id
        upstream: dict[str, str] = {}
        augment = self._augment(factors)
        if augment and (settings.cache is None or self.config.augment.n_views is None):
            content["augment"] = augment
            if settings.cache is not None:
                content["encoder"] = self.encoder(segmenter, cache=settings.cache)
        elif settings.cache is not None:
            upstream = self._embedded(cell, ids=ids, sets=sets, augment=augment)
        upstream |= {role: each.key for role, each in zip(EMBEDDINGS_OF, sets, strict=False)}
        name = cell.condition if segmenter in UNNAMED else f"{segmenter} {cell.condition}"
        name += "" if cell.generator in ("", "pixel") else f" {cell.generator}"
        title = f"{name}, {len(ids)} images, seed {cell.seed}"
        steps = settings.steps
        if settings.epochs is not None:
            # The most that they can be, for a gate may refuse pairs.
            n_pairs = sum(min(each.n, factors.at_most or each.n) for each in sets)
            n_items = len(ids) * (2 if repeats else 1) + n_pairs
            steps = settings.epochs * math.ceil(n_items / settings.batch_size)
        node = Node(
            stage="fit",
            content=content,
            upstream=upstream,
            label=f"fit {title}",
            title=title,
            slug=name.replace(" ", "-"),
            steps=steps,
            segmenter=segmenter,
        )
        return self.add(node)

    def _augment(self, factors: ConditionConfig) -> dict[str, Any]:
        """What a fit hashes of augmentation that is made as images are drawn; empty for none."""
        if factors.augment == "none":
            return {}
        found: dict[str, Any] = {"strength": factors.augment, "version": AUGMENT_VERSION}
        extra, more = set(factors.extra), {"without": sorted(factors.without)}
        if factors.augment == "strong":
            extra |= set(self.config.augment.extra)
            more["moderate_end"] = self.config.augment.moderate_end
        more["extra"] = sorted(extra)
        return found | {name: value for name, value in more.items() if value}

    def _embedded(
        self, cell: Cell, *, ids: list[str], sets: Sequence[Pairs], augment: dict[str, Any]
    ) -> dict[str, str]:
        """What a fit reads instead of images, by role."""
        who, other = f"condition {cell.condition}", "sweep.segmenter=[unet]"
        if cell.segmenter == JUDGE:
            who, other = "gate.judge_augment", "gate.judge.kind=unet"
        for name in ("without", "extra", "moderate_end"):
            if name in augment:
                raise InputError(
                    f"{who}: {name}={augment[name]} needs views that are made as they are drawn; "
                    f"set augment.n_views=null, or {other}"
                )
        of = {"segmenter": cell.segmenter, "cache": self.settings(cell.segmenter).cache}
        what = "train images"
        found = {"embeddings": self.embed(ids, what=what, **of)}
        if val := self.validation(cell):
            found["val_embeddings"] = self.embed(val, what="validation images", **of)
        if augment:
            found["views"] = self.embed(ids, what=what, strength=augment["strength"], **of)
        for role, each in zip(EMBEDDINGS_OF.values(), sets, strict=False):
            found[role] = self.embed_pairs(each, **of)
        return found
