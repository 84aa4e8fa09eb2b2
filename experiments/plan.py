"""From a recipe and an indexed data set to stages, trials and their ids. Nothing is run here.

A stage's id is a hash over what determines its result: the stage's version, its part of the
config, its inputs' content and the ids of the stages before it. Paths, devices, worker counts and
dashboards are not in it, so the same work is found again by any sweep on any machine.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from datamodules.errors import InputError
from datamodules.splits import amount_from_fraction, check_count, support_order
from experiments.config import ExperimentConfig
from experiments.nodes import NOT_HASHED, DataView, Node, Plan, TrialSpec
from lightning_modules.config_sam import FRAME_SIDE_PX, SegmenterConfig
from lightning_modules.weights import encoder_id


def make_plan(config: ExperimentConfig, data: DataView) -> Plan:
    """Lay out the grid.

    Raises:
        InputError: For an amount that the train part cannot give.
    """
    return _Planner(config, data).plan()


def _amounts(config: ExperimentConfig, *, n_train: int) -> list[tuple[float | None, int]]:
    amounts: list[tuple[float | None, int]] = []
    for fraction in config.sweep.real_fraction:
        amounts.append((fraction, amount_from_fraction(fraction, n_train=n_train)))
    for count in config.sweep.real_count:
        amounts.append((None, check_count(count, n_train=n_train, key="sweep.real_count")))
    seen: dict[int, float | None] = {}
    for fraction, count in amounts:
        if count in seen:
            raise InputError(
                f"sweep: two amounts give the same {count} images of the {n_train} in the train "
                "part; remove one"
            )
        seen[count] = fraction
    return amounts


class _Planner:
    def __init__(self, config: ExperimentConfig, data: DataView) -> None:
        self.config, self.data = config, data
        self.nodes: dict[str, Node] = {}
        self.weights_sha256 = encoder_id(config.segmenter.backbone)

    def plan(self) -> Plan:
        train = self.data.split.train
        amounts = _amounts(self.config, n_train=len(train))
        grid = self.config.sweep
        if "synthetic" in grid.condition and self.data.foreign_pairs is None:
            check_count(
                self.config.synthesis.generator_count,
                n_train=len(train),
                key="synthesis.generator_count",
            )
        trials = []
        for condition in grid.condition:
            for fraction, count in amounts:
                for support in grid.support:
                    for seed in grid.seed:
                        # The real condition has no generator, so no axis for its seed.
                        for generator_seed in grid.generator_seed if condition != "real" else [0]:
                            trials.append(
                                self._trial_spec(
                                    condition=condition,
                                    fraction=fraction,
                                    count=count,
                                    support=support,
                                    seed=seed,
                                    generator_seed=generator_seed,
                                )
                            )
        return Plan(nodes=self.nodes, trials=trials, control_key=self._control_node())

    def _add(self, node: Node) -> str:
        self.nodes.setdefault(node.key, node)
        return node.key

    def _support(self, support: int, count: int) -> list[str]:
        units = [self.data.units[sample_id] for sample_id in self.data.split.train]
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

    def _embed_real(self) -> str | None:
        split = self.data.split
        ids = sorted([*split.train, *split.val, *split.test])
        ids += [i for name in sorted(self.data.cohorts) for i in self.data.cohorts[name]]
        return self._add(
            Node(
                stage="embed",
                content={"images": self._contents(ids), "encoder": self._encoder()},
                label=f"embed {len(ids)} real images",
                steps=len(ids),
            )
        )

    def _encoder(self) -> dict[str, Any]:
        segmenter: SegmenterConfig = self.config.segmenter
        return {
            "backbone": segmenter.backbone,
            "weights_sha256": self.weights_sha256,
            "precision": segmenter.encoder_precision,
        }

    def _generator(self, *, count: int, support: int, generator_seed: int) -> str:
        ids = self._support(support, count)
        return self._add(
            Node(
                stage="generator",
                content={
                    "generator": self._section("generator"),
                    "images": self._contents(ids),
                    "seed": generator_seed,
                },
                label=f"fit generator on {count} images",
                steps=self.config.generator.steps,
            )
        )

    def _synthetic(self, *, count: int, support: int, generator_seed: int) -> tuple[str, str]:
        """The gate's node, which is the synthetic set, and its embeddings."""
        generator = self._generator(count=count, support=support, generator_seed=generator_seed)
        n = self.config.synthesis.n_candidates
        candidates = self._add(
            Node(
                stage="synthesize",
                content={"synthesis": self._section("synthesis"), "seed": generator_seed},
                upstream={"generator": generator},
                label=f"synthesise {n} candidates (generator on {count})",
                steps=n,
            )
        )
        embeddings = self._add(
            Node(
                stage="embed",
                content={"encoder": self._encoder()},
                upstream={"pairs": candidates},
                label=f"embed {n} candidates (generator on {count})",
                steps=n,
            )
        )
        ids = self._support(support, count)
        segmenter = self._trial_node(ids=ids, support=support, seed=0, synthetic=None)
        gate = self._add(
            Node(
                stage="gate",
                content={"gate": self._section("gate"), "images": self._contents(ids)},
                upstream={
                    "candidates": candidates,
                    "embeddings": embeddings,
                    "real_embeddings": self._embed_real(),
                    "segmenter": segmenter,
                },
                label=f"gate {n} candidates (generator on {count})",
                steps=n,
            )
        )
        return gate, embeddings

    def _imported(self, pairs: dict[str, str]) -> tuple[str, str]:
        """Somebody else's pairs, taken into the store, and their embeddings; no gate."""
        imported = self._add(
            Node(
                stage="import_pairs",
                content={"pairs": sorted(pairs.items())},
                label=f"import {len(pairs)} synthetic pairs",
                steps=len(pairs),
            )
        )
        embeddings = self._add(
            Node(
                stage="embed",
                content={"encoder": self._encoder()},
                upstream={"pairs": imported},
                label=f"embed {len(pairs)} imported pairs",
                steps=len(pairs),
            )
        )
        return imported, embeddings

    def _trial_node(
        self, *, ids: list[str], support: int, seed: int, synthetic: tuple[str, str] | None
    ) -> str:
        config = self.config
        segmenter = self._section("segmenter")
        if synthetic is None:
            del segmenter["synthetic_share"]
        uses_val = config.segmenter.early_stopping_patience is not None
        content = {
            "segmenter": segmenter,
            "weights_sha256": self.weights_sha256,
            "images": self._contents(ids),
            "val": self._contents(self.data.split.val) if uses_val else [],
            "test": self._test(),
            "evaluation": self._evaluation(),
            "seed": seed,
        }
        upstream = {"embeddings": self._embed_real()}
        if synthetic is not None:
            upstream["synthetic"], upstream["synthetic_embeddings"] = synthetic
        kind = "real"
        if synthetic is not None:
            made = self.nodes[synthetic[0]]
            is_ours = made.stage == "gate"
            source = f"generator on {len(made.content['images'])}" if is_ours else "imported"
            kind = f"real + synthetic ({source})"
        return self._add(
            Node(
                stage="trial",
                content=content,
                upstream=upstream,
                label=f"{kind}, {len(ids)} images, support {support}, seed {seed}",
                steps=config.segmenter.steps,
            )
        )

    def _test(self) -> dict[str, list[list[str]]]:
        test = {self.data.name: list(self.data.split.test), **self.data.cohorts}
        return {name: self._references(part) for name, part in test.items()}

    def _evaluation(self) -> dict[str, Any]:
        evaluation = self.config.evaluation
        return {
            "prompts": sorted(evaluation.prompts),
            "jitter_draws": evaluation.jitter_draws,
            "jitter_max_px": self.config.segmenter.jitter_max_px,
        }

    def _control_node(self) -> str | None:
        prompts = sorted(p for p in self.config.evaluation.prompts if p != "whole_image")
        if not prompts:
            return None
        test = self._test()
        return self._add(
            Node(
                stage="control",
                content={
                    "test": test,
                    "evaluation": self._evaluation() | {"prompts": prompts},
                    # The box is taken from the mask in the segmenter's frame.
                    "frame_side_px": FRAME_SIDE_PX[self.config.segmenter.backbone],
                },
                label="control: box only, no image",
                steps=sum(map(len, test.values())),
            )
        )

    def _trial_spec(
        self,
        *,
        condition: str,
        fraction: float | None,
        count: int,
        support: int,
        seed: int,
        generator_seed: int,
    ) -> TrialSpec:
        synthesis = self.config.synthesis
        ids = self._support(support, count)
        synthetic, generator_ids = None, []
        if condition == "synthetic" and self.data.foreign_pairs is not None:
            synthetic = self._imported(self.data.foreign_pairs)
        elif condition == "synthetic":
            synthetic = self._synthetic(
                count=synthesis.generator_count,
                support=synthesis.generator_support,
                generator_seed=generator_seed,
            )
            generator_ids = self._support(synthesis.generator_support, synthesis.generator_count)
        elif condition == "synthetic_same_budget":
            synthetic = self._synthetic(count=count, support=support, generator_seed=generator_seed)
            generator_ids = ids
        n_generator_labels: int | None = len(generator_ids)
        n_total_labels: int | None = len({*ids, *generator_ids})
        if condition == "synthetic" and self.data.foreign_pairs is not None:
            n_generator_labels = synthesis.folder_labels
            # Whether its maker's images are among ours is not known: the sum is the safe count.
            n_total_labels = None if n_generator_labels is None else count + n_generator_labels
        uses_val = self.config.segmenter.early_stopping_patience is not None
        n_val_labels = len(self.data.split.val) if uses_val else 0
        return TrialSpec(
            condition=condition,
            real_fraction=fraction,
            n_real=count,
            support=support,
            seed=seed,
            generator_seed=generator_seed,
            n_generator_labels=n_generator_labels,
            n_val_labels=n_val_labels,
            n_total_labels=None if n_total_labels is None else n_total_labels + n_val_labels,
            node_key=self._trial_node(ids=ids, support=support, seed=seed, synthetic=synthetic),
        )
