"""The stages of a plan: what each is made from, so that equal work has one id."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from datamodules.splits import support_order
from experiments.config.schema import ExperimentConfig
from experiments.plan.nodes import NOT_HASHED, DataView, Node
from lightning_modules.segmenters.sam.config import ENCODER_SETTINGS, Tuning
from lightning_modules.segmenters.sam.weights import encoder_id

# Settings that are not named in an id where they change nothing, so that ids stay.
NEUTRAL = {"geometry": "pad", "tuning": "decoder", "epochs": None, "lr_schedule": "cosine"}
CACHED: tuple[Tuning, ...] = ("decoder", "late_lora")
"""Tuning modes that run on what a frozen encoder, or its first half, gave once."""
STRENGTHS = {"weak": "weak", "strong": "strong", "synthetic_same_budget_strong": "strong"}


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The pairs that a condition adds: the stage that made them, and whose labels they hold."""

    key: str
    source: str
    """The stage whose pairs are embedded: where a gate chose, all that it chose from."""
    n: int
    what: str
    """How many those are, and what a person calls them."""
    label_ids: list[str] = field(default_factory=list)
    """Labelled images behind them."""
    is_foreign: bool = False


class Nodes:
    """Makes stages and keeps each once."""

    def __init__(self, config: ExperimentConfig, data: DataView) -> None:
        self.config, self.data = config, data
        self.nodes: dict[str, Node] = {}
        segmenter = config.segmenter
        self.weights_sha256 = encoder_id(segmenter.backbone, segmenter.weights_path)

    def add(self, node: Node) -> str:
        self.nodes.setdefault(node.key, node)
        return node.key

    def support(self, support: int, count: int, *, fold: int) -> list[str]:
        """The first `count` train images in the order of a support."""
        units = [self.data.units[sample_id] for sample_id in self.data.folds[fold].train]
        return support_order(units, support=support)[:count]

    def contents(self, ids: Sequence[str]) -> list[list[str]]:
        return [[sample_id, self.data.content[sample_id]] for sample_id in ids]

    def references(self, ids: Sequence[str]) -> list[list[str]]:
        return [[sample_id, self.data.references[sample_id]] for sample_id in ids]

    def section(self, name: str) -> dict[str, Any]:
        section = asdict(getattr(self.config, name))
        for key in NOT_HASHED.get(name, ()):
            *groups, leaf = key.split(".")
            holder = section
            for group in groups:
                holder = holder[group]
            del holder[leaf]
        return section

    def encoder(self, *, features: bool = False) -> dict[str, Any]:
        """What an embedding depends on beside its image."""
        segmenter = self.config.segmenter
        found: dict[str, Any] = {
            "backbone": segmenter.backbone,
            "weights_sha256": self.weights_sha256,
            "precision": segmenter.encoder_precision,
        }
        if segmenter.geometry != "pad":
            found["geometry"] = segmenter.geometry
        if features:
            found["features"] = "late_lora"
        return found

    def segmenter(self, tuning: Tuning) -> dict[str, Any]:
        """The segmenter's settings that are read under a tuning mode."""
        section = self.section("segmenter")
        section["tuning"] = tuning
        for key, neutral in NEUTRAL.items():
            if section[key] == neutral:
                del section[key]
        if tuning == "decoder":
            for key in ENCODER_SETTINGS:
                del section[key]
        if "epochs" in section:
            del section["steps"], section["synthetic_share"]
        return section

    def embed(
        self,
        ids: Sequence[str],
        *,
        what: str,
        strength: str | None = None,
        features: bool = False,
    ) -> str:
        """Embeddings of real images, with augmented views where a strength is given."""
        content: dict[str, Any] = {
            "images": self.contents(sorted(ids)),
            "encoder": self.encoder(features=features),
        }
        n, label = len(ids), f"embed {len(ids)} {what}"
        if strength is not None:
            # A mirror image is one view beside the image itself.
            n_views = 2 if strength == "mirror" else self.config.augment.views_at(len(ids))
            content["augment"] = {"strength": strength, "n_views": n_views}
            n, label = n * n_views, f"embed {n_views - 1} {strength} views of {n} {what}"
        return self.add(Node(stage="embed", content=content, label=label, steps=n))

    def embed_pairs(self, pairs: Pairs, *, features: bool = False) -> str:
        """Embeddings of the pairs that a condition may add."""
        return self.add(
            Node(
                stage="embed",
                content={"encoder": self.encoder(features=features)},
                upstream={"pairs": pairs.source},
                label=f"embed {pairs.n} {pairs.what}",
                steps=pairs.n,
            )
        )

    def fit(
        self,
        condition: str,
        *,
        ids: list[str],
        seed: int,
        pairs: Pairs | None,
        fold: int,
        tuning: Tuning | None = None,
    ) -> str:
        """The stage that fine-tunes a segmenter, or fits the U-Net, on a trial's images."""
        if condition == "unet":
            return self._fit_unet(ids, seed=seed)
        tuning = self.config.segmenter.tuning if tuning is None else tuning
        segmenter = self.segmenter(tuning)
        repeats = condition == "real_repeated"
        if pairs is None and not repeats:
            segmenter.pop("synthetic_share", None)
        val = list(self.data.folds[fold].val)
        uses_val = self.config.segmenter.early_stopping_patience is not None
        content = {
            "segmenter": segmenter,
            "weights_sha256": self.weights_sha256,
            "images": self.contents(ids),
            "val": self.contents(val) if uses_val else [],
            "seed": seed,
            "repeat_real": repeats,
        }
        upstream = {}
        is_fresh = condition in STRENGTHS and (
            tuning not in CACHED or self.config.augment.n_views is None
        )
        if is_fresh:
            content["augment"] = STRENGTHS[condition]
            if tuning in CACHED:
                content["encoder"] = self.encoder(features=tuning == "late_lora")
        elif tuning in CACHED:
            features = tuning == "late_lora"
            upstream["embeddings"] = self.embed(ids, what="train images", features=features)
            if uses_val:
                what = "validation images"
                upstream["val_embeddings"] = self.embed(val, what=what, features=features)
            if condition in STRENGTHS:
                upstream["views"] = self.embed(
                    ids, what="train images", strength=STRENGTHS[condition], features=features
                )
            if pairs is not None:
                upstream["pair_embeddings"] = self.embed_pairs(pairs, features=features)
        if pairs is not None:
            upstream["pairs"] = pairs.key
        title = f"{condition}, {len(ids)} images, seed {seed}"
        return self.add(
            Node(
                stage="fit",
                content=content,
                upstream=upstream,
                label=f"fit {title}",
                title=title,
                slug=condition,
                steps=self._steps(len(ids), pairs=pairs, repeats=repeats),
            )
        )

    def _steps(self, n_images: int, *, pairs: Pairs | None, repeats: bool) -> int:
        """Steps of a fit; under `epochs` the most that they can be, for a gate may refuse pairs."""
        segmenter = self.config.segmenter
        if segmenter.epochs is None:
            return segmenter.steps
        n = n_images * (2 if repeats else 1) + (pairs.n if pairs is not None else 0)
        return segmenter.epochs * math.ceil(n / segmenter.batch_size)

    def _fit_unet(self, ids: list[str], *, seed: int) -> str:
        content = {"unet": self.section("unet"), "images": self.contents(ids), "seed": seed}
        title = f"U-Net on {len(ids)} images, seed {seed}"
        return self.add(
            Node(
                stage="fit_unet",
                content=content,
                label=f"fit {title}",
                title=title,
                steps=self.config.unet.steps,
            )
        )
