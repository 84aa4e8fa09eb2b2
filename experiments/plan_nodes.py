"""The stages of a plan: what each is made from, so that equal work has one id."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from datamodules.splits import support_order
from experiments.config import ExperimentConfig
from experiments.nodes import NOT_HASHED, DataView, Node
from lightning_modules.weights import encoder_id

STRENGTHS = {"weak": "weak", "strong": "strong", "synthetic_same_budget_strong": "strong"}


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The pairs that a condition adds: the stage that made them, and whose labels they hold."""

    key: str
    embeddings: str
    label_ids: list[str] = field(default_factory=list)
    """Labelled images behind them."""
    is_foreign: bool = False


class Nodes:
    """Makes stages and keeps each once."""

    def __init__(self, config: ExperimentConfig, data: DataView) -> None:
        self.config, self.data = config, data
        self.nodes: dict[str, Node] = {}
        self.weights_sha256 = encoder_id(config.segmenter.backbone)

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

    def encoder(self) -> dict[str, Any]:
        segmenter = self.config.segmenter
        return {
            "backbone": segmenter.backbone,
            "weights_sha256": self.weights_sha256,
            "precision": segmenter.encoder_precision,
        }

    def embed(self, ids: Sequence[str], *, what: str, strength: str | None = None) -> str:
        """Embeddings of real images, with augmented views where a strength is given."""
        content: dict[str, Any] = {
            "images": self.contents(sorted(ids)),
            "encoder": self.encoder(),
        }
        n, label = len(ids), f"embed {len(ids)} {what}"
        if strength is not None:
            # A mirror image is one view beside the image itself.
            n_views = 2 if strength == "mirror" else self.config.augment.n_views
            content["augment"] = {"strength": strength, "n_views": n_views}
            n, label = n * n_views, f"embed {n_views - 1} {strength} views of {n} {what}"
        return self.add(Node(stage="embed", content=content, label=label, steps=n))

    def embed_pairs(self, key: str, *, n: int, label: str) -> str:
        return self.add(
            Node(
                stage="embed",
                content={"encoder": self.encoder()},
                upstream={"pairs": key},
                label=label,
                steps=n,
            )
        )

    def fit(
        self, condition: str, *, ids: list[str], seed: int, pairs: Pairs | None, fold: int
    ) -> str:
        """The stage that fine-tunes a segmenter, or fits the U-Net, on a trial's images."""
        if condition == "unet":
            return self.add(
                Node(
                    stage="fit_unet",
                    content={
                        "unet": self.section("unet"),
                        "images": self.contents(ids),
                        "seed": seed,
                    },
                    label=f"fit U-Net on {len(ids)} images, seed {seed}",
                    steps=self.config.unet.steps,
                )
            )
        segmenter = self.section("segmenter")
        repeats = condition == "real_repeated"
        if pairs is None and not repeats:
            del segmenter["synthetic_share"]
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
        upstream = {"embeddings": self.embed(ids, what="train images")}
        if uses_val:
            upstream["val_embeddings"] = self.embed(val, what="validation images")
        if condition in STRENGTHS:
            upstream["views"] = self.embed(ids, what="train images", strength=STRENGTHS[condition])
        if pairs is not None:
            upstream |= {"pairs": pairs.key, "pair_embeddings": pairs.embeddings}
        return self.add(
            Node(
                stage="fit",
                content=content,
                upstream=upstream,
                label=f"fit {condition}, {len(ids)} images, seed {seed}",
                steps=self.config.segmenter.steps,
            )
        )
