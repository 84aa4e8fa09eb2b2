"""The stages of a plan: what each is made from, so that equal work has one id."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from datamodules.splits import support_order
from experiments.config import ExperimentConfig
from experiments.nodes import NOT_HASHED, DataView, Node
from lightning_modules.config_sam import FRAME_SIDE_PX
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

    def _add(self, node: Node) -> str:
        self.nodes.setdefault(node.key, node)
        return node.key

    def support(self, support: int, count: int, *, fold: int) -> list[str]:
        """The first `count` train images in the order of a support."""
        units = [self.data.units[sample_id] for sample_id in self.data.folds[fold].train]
        return support_order(units, support=support)[:count]

    def _contents(self, ids: Sequence[str]) -> list[list[str]]:
        return [[sample_id, self.data.content[sample_id]] for sample_id in ids]

    def _references(self, ids: Sequence[str]) -> list[list[str]]:
        return [[sample_id, self.data.references[sample_id]] for sample_id in ids]

    def _section(self, name: str) -> dict[str, Any]:
        section = asdict(getattr(self.config, name))
        for key in NOT_HASHED.get(name, ()):
            *groups, leaf = key.split(".")
            holder = section
            for group in groups:
                holder = holder[group]
            del holder[leaf]
        return section

    def _encoder(self) -> dict[str, Any]:
        segmenter = self.config.segmenter
        return {
            "backbone": segmenter.backbone,
            "weights_sha256": self.weights_sha256,
            "precision": segmenter.encoder_precision,
        }

    def embed(self, ids: Sequence[str], *, what: str, strength: str | None = None) -> str:
        """Embeddings of real images, with augmented views where a strength is given."""
        content: dict[str, Any] = {
            "images": self._contents(sorted(ids)),
            "encoder": self._encoder(),
        }
        n, label = len(ids), f"embed {len(ids)} {what}"
        if strength is not None:
            # A mirror image is one view beside the image itself.
            n_views = 2 if strength == "mirror" else self.config.augment.n_views
            content["augment"] = {"strength": strength, "n_views": n_views}
            n, label = n * n_views, f"embed {n_views - 1} {strength} views of {n} {what}"
        return self._add(Node(stage="embed", content=content, label=label, steps=n))

    def _embed_pairs(self, key: str, *, n: int, label: str) -> str:
        return self._add(
            Node(
                stage="embed",
                content={"encoder": self._encoder()},
                upstream={"pairs": key},
                label=label,
                steps=n,
            )
        )

    def _generator(self, ids: list[str], *, generator_seed: int) -> str:
        return self._add(
            Node(
                stage="generator",
                content={
                    "generator": self._section("generator"),
                    "images": self._contents(ids),
                    "seed": generator_seed,
                },
                label=f"fit generator on {len(ids)} images",
                steps=self.config.generator.steps,
            )
        )

    def _candidates(self, ids: list[str], *, generator_seed: int) -> Pairs:
        generator = self._generator(ids, generator_seed=generator_seed)
        n, count = self.config.synthesis.n_candidates, len(ids)
        key = self._add(
            Node(
                stage="synthesize",
                content={"synthesis": self._section("synthesis"), "seed": generator_seed},
                upstream={"generator": generator},
                label=f"synthesise {n} candidates (generator on {count})",
                steps=n,
            )
        )
        label = f"embed {n} candidates (generator on {count})"
        embeddings = self._embed_pairs(key, n=n, label=label)
        return Pairs(key=key, embeddings=embeddings, label_ids=ids)

    def _gated(self, ids: list[str], *, generator_seed: int, fold: int) -> Pairs:
        """The gate's node, which is the synthetic set."""
        candidates = self._candidates(ids, generator_seed=generator_seed)
        segmenter = self.fit("real", ids=ids, seed=0, pairs=None, fold=fold)
        n = self.config.synthesis.n_candidates
        key = self._add(
            Node(
                stage="gate",
                content={"gate": self._section("gate"), "images": self._contents(ids)},
                upstream={
                    "candidates": candidates.key,
                    "embeddings": candidates.embeddings,
                    "real_embeddings": self.embed(ids, what="train images"),
                    "segmenter": segmenter,
                },
                label=f"gate {n} candidates (generator on {len(ids)})",
                steps=n,
            )
        )
        self._fidelity(
            ids, pairs=key, embeddings=candidates.embeddings, segmenter=segmenter, fold=fold
        )
        return Pairs(key=key, embeddings=candidates.embeddings, label_ids=ids)

    def _fidelity(
        self, ids: list[str], *, pairs: str, embeddings: str, segmenter: str, fold: int
    ) -> None:
        test = self.data.folds[fold].test
        self._add(
            Node(
                stage="fidelity",
                content={"images": self._contents(ids), "test": self._contents(test)},
                upstream={
                    "pairs": pairs,
                    "embeddings": embeddings,
                    "segmenter": segmenter,
                    "real_embeddings": self.embed(ids, what="train images", strength="mirror"),
                    "test_embeddings": self._embed_test(self.data.name, fold=fold),
                },
                label=f"fidelity of the synthetic set (generator on {len(ids)})",
                steps=1,
            )
        )

    def _imported(self) -> Pairs:
        """Somebody else's pairs, taken into the store; no gate."""
        pairs = self.data.foreign_pairs
        key = self._add(
            Node(
                stage="import_pairs",
                content={"pairs": sorted(pairs.items())},
                label=f"import {len(pairs)} synthetic pairs",
                steps=len(pairs),
            )
        )
        label = f"embed {len(pairs)} imported pairs"
        embeddings = self._embed_pairs(key, n=len(pairs), label=label)
        return Pairs(key=key, embeddings=embeddings, is_foreign=True)

    def _made_pairs(
        self, stage: str, *, ids: list[str], seed: int, extra: dict[str, Any] | None = None
    ) -> Pairs:
        """Pairs that need no network: warped, procedural, or the real ones at another size."""
        n = len(ids) if stage == "resize" else self.config.synthesis.n_candidates
        what = {"warp": "warped", "phantom": "procedural", "resize": "resized"}[stage]
        content = {"images": self._contents(ids), **(extra or {})}
        if stage != "resize":
            size = list(self.config.synthesis.image_hw)
            content |= {"n": n, "seed": seed, "image_hw": size}
        key = self._add(
            Node(
                stage=stage,
                content=content,
                label=f"make {n} {what} pairs (from {len(ids)} images)",
                steps=n,
            )
        )
        label = f"embed {n} {what} pairs (from {len(ids)} images)"
        return Pairs(key=key, embeddings=self._embed_pairs(key, n=n, label=label), label_ids=ids)

    def pairs_of(
        self,
        condition: str,
        *,
        ids: list[str],
        support: int,
        generator_seed: int,
        fold: int,
    ) -> Pairs | None:
        """The pairs that a condition adds to its real images; None for none."""
        synthesis = self.config.synthesis
        if condition == "warp" or condition == "phantom":
            return self._made_pairs(condition, ids=ids, seed=support)
        if condition.startswith("synthetic_same_budget"):
            return self._gated(ids, generator_seed=generator_seed, fold=fold)
        if condition == "synthetic" and self.data.foreign_pairs is not None:
            return self._imported()
        if not condition.startswith("synthetic") and condition != "real_resized":
            return None
        named = self.support(synthesis.generator_support, synthesis.generator_count, fold=fold)
        if condition == "real_resized":
            native = list(self.config.generator.size_hw)
            return self._made_pairs("resize", ids=named, seed=0, extra={"native_hw": native})
        if condition == "synthetic_no_gate":
            return self._candidates(named, generator_seed=generator_seed)
        gated = self._gated(named, generator_seed=generator_seed, fold=fold)
        if condition == "synthetic_random_subset":
            candidates = self.nodes[gated.key].upstream["candidates"]
            key = self._add(
                Node(
                    stage="subset",
                    content={"seed": generator_seed},
                    upstream={"candidates": candidates, "gate": gated.key},
                    label="as many candidates at random as the gate kept",
                    steps=1,
                )
            )
            return Pairs(key=key, embeddings=gated.embeddings, label_ids=named)
        return gated

    def fit(
        self, condition: str, *, ids: list[str], seed: int, pairs: Pairs | None, fold: int
    ) -> str:
        """The stage that fine-tunes a segmenter, or fits the U-Net, on a trial's images."""
        if condition == "unet":
            return self._add(
                Node(
                    stage="fit_unet",
                    content={
                        "unet": self._section("unet"),
                        "images": self._contents(ids),
                        "seed": seed,
                    },
                    label=f"fit U-Net on {len(ids)} images, seed {seed}",
                    steps=self.config.unet.steps,
                )
            )
        segmenter = self._section("segmenter")
        repeats = condition == "real_repeated"
        if pairs is None and not repeats:
            del segmenter["synthetic_share"]
        val = list(self.data.folds[fold].val)
        uses_val = self.config.segmenter.early_stopping_patience is not None
        content = {
            "segmenter": segmenter,
            "weights_sha256": self.weights_sha256,
            "images": self._contents(ids),
            "val": self._contents(val) if uses_val else [],
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
        return self._add(
            Node(
                stage="fit",
                content=content,
                upstream=upstream,
                label=f"fit {condition}, {len(ids)} images, seed {seed}",
                steps=self.config.segmenter.steps,
            )
        )

    def box(self, fit_key: str, *, ids: list[str], fold: int) -> str:
        """The stage that scores one fitted model under boxes ever looser."""
        test = list(self.data.folds[fold].test)
        return self._add(
            Node(
                stage="box",
                content={
                    "images": self._contents(ids),
                    "test": self._references(test),
                    "cohort": self.data.name,
                    "jitter_draws": self.config.evaluation.jitter_draws,
                },
                upstream={
                    "fit": fit_key,
                    "embeddings": self._embed_test(self.data.name, fold=fold),
                },
                label=f"boxes ever looser: {self.nodes[fit_key].label[4:]}",
                steps=len(test) * 14,
            )
        )

    def _embed_test(self, cohort: str, *, fold: int) -> str:
        return self.embed(self._test_ids(cohort, fold=fold), what=f"test images of {cohort}")

    def _test_ids(self, cohort: str, *, fold: int) -> list[str]:
        if cohort == self.data.name:
            return list(self.data.folds[fold].test)
        return self.data.cohorts[cohort]

    def _tests(self) -> list[str]:
        # An external cohort is tested by every fold's models.
        return [self.data.name, *sorted(self.data.cohorts)]

    def _evaluation(self, prompt: str) -> dict[str, Any]:
        found: dict[str, Any] = {"prompt": prompt}
        if prompt == "jittered_box":
            found["jitter_draws"] = self.config.evaluation.jitter_draws
            found["jitter_max_px"] = self.config.segmenter.jitter_max_px
        return found

    def scores(
        self, fit_key: str | None, *, is_unet: bool = False, fold: int
    ) -> dict[tuple[str, str], str]:
        """Stages that score a fitted model, or the bare backbone, by cohort and prompt."""
        prompts = ["whole_image"] if is_unet else self.config.evaluation.prompts
        keys = {}
        for cohort in self._tests():
            ids = self._test_ids(cohort, fold=fold)
            for prompt in prompts:
                content: dict[str, Any] = {
                    "test": self._references(ids),
                    "cohort": cohort,
                    "evaluation": self._evaluation(prompt),
                }
                upstream = {} if fit_key is None else {"fit": fit_key}
                if not is_unet:
                    upstream["embeddings"] = self._embed_test(cohort, fold=fold)
                if fit_key is None:
                    content["encoder"] = self._encoder()
                what = "zero-shot" if fit_key is None else self.nodes[fit_key].label[4:]
                keys[cohort, prompt] = self._add(
                    Node(
                        stage="score",
                        content=content,
                        upstream=upstream,
                        label=f"score {what} on {cohort}, {prompt}",
                        steps=len(ids) * content["evaluation"].get("jitter_draws", 1),
                    )
                )
        return keys

    def controls(self, control: str, *, fold: int) -> dict[tuple[str, str], str]:
        """Stages that score a control, by cohort and prompt; none where it reads no such prompt."""
        if control == "zero_shot":
            return self.scores(None, fold=fold)
        keys = {}
        prompts = {
            # Boxes that come from the reference; the constant mask reads no box at all.
            "box_only": ("jittered_box", "tight_box"),
            "mean_mask": ("whole_image",),
        }[control]
        prompts = [p for p in self.config.evaluation.prompts if p in prompts]
        train = list(self.data.folds[fold].train)
        for cohort in self._tests():
            ids = self._test_ids(cohort, fold=fold)
            for prompt in prompts:
                content: dict[str, Any] = {
                    "kind": control,
                    "test": self._references(ids),
                    "cohort": cohort,
                    "evaluation": self._evaluation(prompt),
                    # The box is taken from the mask in the segmenter's frame.
                    "frame_side_px": FRAME_SIDE_PX[self.config.segmenter.backbone],
                }
                if control == "mean_mask":
                    content["images"] = self._contents(train)
                keys[cohort, prompt] = self._add(
                    Node(
                        stage="control",
                        content=content,
                        label=f"control {control} on {cohort}, {prompt}",
                        steps=len(ids),
                    )
                )
        return keys
