"""Our way: the real stages of a real plan, run one by one in a store of their own."""

import contextlib
import io
import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.bench.context import Bench
from experiments.config.recipe import load_config
from experiments.plan.grid import make_plan
from experiments.plan.nodes import Node
from experiments.stages.context import StageContext
from experiments.stages.data import load_data
from experiments.store.runs import RunStore, write_done, write_started
from lightning_modules.segmenters.sam.config import Backbone

IMAGES = 24
"""Images of the data that are used, where there are more."""
N_TEST = 6


def common_overrides(bench: Bench, *, name: str, backbone: Backbone | None = None) -> list[str]:
    """Settings of every trial here: data, split, backbone, batch, and a store below the bench's."""
    backbone = backbone or bench.backbone
    weights = bench.weights(backbone)
    return [
        f"data.root={bench.root()}",
        f"data.subset.n_images={'null' if bench.quick else IMAGES}",
        "data.subset.name=bench",
        f"split.test={3 if bench.quick else N_TEST}",
        "split.val=1",
        "split.train=null",
        f"store.root={bench.work / name}",
        f"trainer.accelerator={'gpu' if bench.device == 'cuda' else 'cpu'}",
        "wandb.mode=disabled",
        f"segmenter.backbone={backbone}",
        f"segmenter.weights_path={weights or 'null'}",
        f"segmenter.encoder_precision={'bf16' if bench.device == 'cuda' else 'fp32'}",
        "segmenter.batch_size=5",
        "evaluation.prompts=[jittered_box]",
        "evaluation.jitter_draws=5",
        "evaluation.controls=[]",
    ]


class TrialStages:
    """The stages of one trial, which can be run at any size and again.

    Args:
        bench: Its data and folder.
        name: Its store's folder below the bench's.
        overrides: Changes to the default recipe.
        backbone: None for the bench's small one.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        name: str,
        overrides: Sequence[str],
        backbone: Backbone | None = None,
    ) -> None:
        words = [*common_overrides(bench, name=name, backbone=backbone), *overrides]
        self.config = load_config(None, words)
        self.data = load_data(self.config)
        self.store = RunStore(Path(self.config.store.root))
        self.plan = make_plan(self.config, self.data.view)

    def node(self, stage: str, *, last: bool = False) -> Node:
        """The first, or last, stage of a kind in the plan."""
        found = [node for node in self.plan.nodes.values() if node.stage == stage]
        return found[-1 if last else 0]

    def run(self, node: Node) -> dict[str, Any]:
        """Run a stage as its worker does, in this process; one that was run before is run anew.

        Returns:
            Its result with `seconds`: from the manifest to the marker on the disk.
        """
        from experiments.plan.stage_table import STAGES

        context = StageContext(
            config=self.config,
            node=node,
            store=self.store,
            samples=self.data.samples,
            rows=self.data.rows,
            content=self.data.view.content,
            sweep="bench",
        )
        shutil.rmtree(context.run_dir, ignore_errors=True)
        context.run_dir.mkdir(parents=True)
        started = time.perf_counter()
        # Later stages read an input's content from its manifest.
        write_started(context.run_dir, {"content": node.content})
        with _silence():
            result = STAGES[node.stage].load()(context)
        write_done(context.run_dir, result)
        return {**result, "seconds": time.perf_counter() - started}

    def forget_embeddings(self) -> None:
        """Remove every embedding, so that the next stage that embeds computes."""
        shutil.rmtree(self.store.root / "store" / "embeddings", ignore_errors=True)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep back what libraries print; a sweep sends it to the stage's log."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def first_images(node: Node, n: int) -> Node:
    """The same stage on its first n images; those that it trains, embeds or tests.

    Raises:
        ValueError: It has fewer.
    """
    key = "test" if "test" in node.content else "images"
    if len(node.content[key]) < n:
        raise ValueError(f"{node.stage} has {len(node.content[key])} images, not {n}")
    return replace(node, content=node.content | {key: node.content[key][:n]})


def with_steps(trial: TrialStages, node: Node, *, steps: int, seed: int) -> Node:
    """A fit with another number of steps and another seed, the settings of the run included."""
    trial.config.segmenter = replace(trial.config.segmenter, steps=steps)
    segmenter = node.content["segmenter"] | {"steps": steps}
    return replace(node, content=node.content | {"segmenter": segmenter, "seed": seed})
