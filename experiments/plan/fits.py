"""The stages of a plan: what each is made from, so that equal work has one id."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from datamodules.choices import choice_order
from datamodules.config import AUGMENT_VERSION
from datamodules.errors import InputError
from experiments.config.conditions import ConditionConfig
from experiments.config.schema import JUDGE, ExperimentConfig
from experiments.plan.nodes import Cell, DataView, Node
from lightning_modules.segmenters.table import predicting, row_of

UNNAMED = ("", "sam", JUDGE)
"""Segmenters that labels do not name: the one that most sweeps have, and the gate's."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The pairs that a condition adds: the stage that made them, and whose labels they hold."""

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
    beside: "Pairs | None" = None
    """A second set, which fills as many places of each batch as this one."""

    @property
    def sets(self) -> list["Pairs"]:
        """The one set, or both."""
        return [self] if self.beside is None else [self, self.beside]


EMBEDDINGS_OF = {"pairs": "pair_embeddings", "more_pairs": "more_pair_embeddings"}
"""Role of a set of pairs in a fit, and of its embeddings."""


class Nodes:
    """Makes stages and keeps each once."""

    def __init__(self, config: ExperimentConfig, data: DataView) -> None:
        self.config, self.data = config, data
        self.nodes: dict[str, Node] = {}
        self.settings = cache(config.segmenter_named)
        """Settings of a segmenter by its block's name."""
        self.generator = cache(config.generator_named)
        """Settings of a generator by its block's name."""
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

    def encoder(self, segmenter: str, *, features: bool = False) -> dict[str, Any]:
        """What an embedding depends on beside its image; the kind must have a frozen encoder."""
        settings = self.settings(segmenter)
        found: dict[str, Any] = {
            "backbone": settings.backbone,
            "weights_sha256": self.weights_id(segmenter),
            "precision": settings.encoder_precision,
        }
        if settings.geometry != "pad":
            found["geometry"] = settings.geometry
        if features:
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
        features: bool = False,
    ) -> str:
        """Embeddings of real images, with augmented views where a strength is given."""
        content: dict[str, Any] = {
            "images": self.contents(sorted(ids)),
            "encoder": self.encoder(segmenter, features=features),
        }
        n, label = len(ids), f"embed {len(ids)} {what}"
        if strength is not None:
            # A mirror image is one view beside the image itself.
            n_views = 2 if strength == "mirror" else self.config.augment.views_at(len(ids))
            content["augment"] = {"strength": strength, "n_views": n_views}
            if strength != "mirror":
                content["augment"]["version"] = AUGMENT_VERSION
            n, label = n * n_views, f"embed {n_views - 1} {strength} views of {n} {what}"
        return self._embed(content, {}, label=label, n=n, segmenter=segmenter)

    def embed_pairs(self, pairs: Pairs, *, segmenter: str, features: bool = False) -> str:
        """Embeddings of the pairs that a condition may add."""
        content = {"encoder": self.encoder(segmenter, features=features)}
        label, upstream = f"embed {pairs.n} {pairs.what}", {"pairs": pairs.embedded or pairs.key}
        return self._embed(content, upstream, label=label, n=pairs.n, segmenter=segmenter)

    def _embed(
        self,
        content: dict[str, Any],
        upstream: dict[str, str],
        *,
        label: str,
        n: int,
        segmenter: str,
    ) -> str:
        label += f" ({segmenter})" if segmenter not in UNNAMED else ""
        node = Node(
            stage="embed",
            content=content,
            upstream=upstream,
            label=label,
            steps=n,
            segmenter=segmenter,
        )
        return self.add(node)

    def fit(
        self, factors: ConditionConfig, *, cell: Cell, ids: list[str], pairs: Pairs | None
    ) -> str:
        """The stage that fits the cell's segmenter on these images and pairs."""
        segmenter, settings = cell.segmenter, self.settings(cell.segmenter)
        sets = [] if pairs is None else pairs.sets
        roles = list(zip(EMBEDDINGS_OF, sets, strict=False))
        repeats = factors.pairs == "repeat"
        hashed = settings.hashed()
        if pairs is None and not repeats:
            hashed.pop("synthetic_share", None)
        val = self.validation(cell)
        content: dict[str, Any] = {
            "segmenter": hashed,
            "images": self.contents(ids),
            "val": self.contents(val),
            "seed": cell.seed,
            "repeat_real": repeats,
        }
        if factors.at_most is not None:
            content["at_most"] = factors.at_most
        if factors.order != "drawn":
            content["order"] = factors.order
        weights_id = self.weights_id(segmenter)
        if weights_id is not None:
            content["weights_sha256"] = weights_id
        upstream = {}
        features = settings.cache == "features"
        of = {"segmenter": segmenter, "features": features}
        augments = factors.augment != "none"
        is_strong, augment = factors.augment == "strong", self.config.augment
        moderate_end = augment.moderate_end if is_strong else 0
        extra = sorted({*factors.extra, *(augment.extra if is_strong else ())})
        if augments and (settings.cache is None or self.config.augment.n_views is None):
            content["augment"] = {"strength": factors.augment, "version": AUGMENT_VERSION}
            if factors.without:
                content["augment"]["without"] = sorted(factors.without)
            if extra:
                content["augment"]["extra"] = extra
            if moderate_end:
                content["augment"]["moderate_end"] = moderate_end
            if settings.cache is not None:
                content["encoder"] = self.encoder(**of)
        elif settings.cache is not None:
            upstream["embeddings"] = self.embed(ids, what="train images", **of)
            if val:
                upstream["val_embeddings"] = self.embed(val, what="validation images", **of)
            for name, value in (("without", factors.without), ("extra", extra)):
                if value:
                    raise InputError(
                        f"condition {cell.condition}: {name}={value} needs views that are made "
                        "as they are drawn; set augment.n_views=null, or sweep.segmenter=[unet]"
                    )
            if moderate_end:
                raise InputError(
                    f"augment.moderate_end={moderate_end}: embedded views are "
                    "drawn in any order; set augment.n_views=null, or sweep.segmenter=[unet]"
                )
            if augments:
                upstream["views"] = self.embed(
                    ids, what="train images", strength=factors.augment, **of
                )
            for role, each in roles:
                upstream[EMBEDDINGS_OF[role]] = self.embed_pairs(each, **of)
        for role, each in roles:
            upstream[role] = each.key
        name = cell.condition if segmenter in UNNAMED else f"{segmenter} {cell.condition}"
        name += "" if cell.generator in ("", "pixel") else f" {cell.generator}"
        n_pairs = sum(min(each.n, factors.at_most or each.n) for each in sets)
        title = f"{name}, {len(ids)} images, seed {cell.seed}"
        node = Node(
            stage="fit",
            content=content,
            upstream=upstream,
            label=f"fit {title}",
            title=title,
            slug=name.replace(" ", "-"),
            steps=_steps(settings, len(ids) * (2 if repeats else 1) + n_pairs),
            segmenter=segmenter,
        )
        return self.add(node)


def _steps(settings: Any, n_items: int) -> int:
    """Steps of a fit; under `epochs` the most that they can be, for a gate may refuse pairs."""
    if settings.epochs is None:
        return settings.steps
    return settings.epochs * math.ceil(n_items / settings.batch_size)
