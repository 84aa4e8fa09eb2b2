"""Our way: the real stages of a real plan, run one by one in a store of their own."""

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from experiments.bench.child import Seconds, run_program, timed
from experiments.bench.context import Bench
from experiments.config.recipe import load_config
from experiments.plan.grid import make_plan
from experiments.plan.stage_table import STAGES
from experiments.stages.context import StageContext
from experiments.stages.data import load_data
from experiments.store.runs import RunStore, write_done, write_started
from lightning_modules.segmenters.sam.config import Backbone
from lightning_modules.segmenters.sam.network import random_vit


def weights_of(bench: Bench, backbone: Backbone) -> str | None:
    """Random weights of a large backbone as a file; None for one that brings its own."""
    if backbone != bench.vit or bench.quick:
        return None
    path = bench.work / f"{backbone}.pth"
    if not path.is_file():
        torch.save(random_vit(backbone).state_dict(), path)
    return str(path)


def common_overrides(bench: Bench, *, name: str, backbone: Backbone | None = None) -> list[str]:
    """Settings of every trial here: data, split, backbone, batch, and a store below the bench's."""
    backbone, is_gpu = backbone or bench.backbone, bench.device == "cuda"
    n_images, n_test = bench.size(quick=("null", 3), cpu=(24, 6), gpu=(24, 6))
    words = (
        f"data.subset.n_images={n_images} data.subset.name=bench split.test={n_test} split.val=1 "
        f"split.train=null wandb.mode=disabled trainer.accelerator={'gpu' if is_gpu else 'cpu'} "
        f"segmenter.backbone={backbone} segmenter.batch_size=5 "
        f"segmenter.encoder_precision={'bf16' if is_gpu else 'fp32'} "
        "evaluation.prompts=[jittered_box] evaluation.jitter_draws=5 evaluation.controls=[]"
    )
    return [
        *words.split(),
        f"data.root={bench.root()}",
        f"store.root={bench.work / name}",
        f"segmenter.weights_path={weights_of(bench, backbone) or 'null'}",
    ]


def run_sweep(recipe: str, words: Sequence[str]) -> Seconds:
    """A whole sweep in a process of its own."""
    return run_program(["-m", "experiments", "sweep", recipe, *words])


class TrialStages:
    """The stages of one trial, which can be run at any size and again.

    Args:
        bench: Its data and folder.
        name: Its store's folder below the bench's; trials may share one.
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
        self.config, self.device = load_config(None, words), bench.device
        self.data = load_data(self.config)
        self.store = RunStore(Path(self.config.store.root))
        self.plan = make_plan(self.config, self.data.view)

    def run(self, stage: str, *, last: bool = False, n: int | None = None) -> Seconds:
        """Run a stage as its worker does, in this process; one that was run before is run anew.

        Args:
            stage: Its kind.
            last: The last one of its kind in the plan instead of the first.
            n: The first so many of the images that it embeds or tests; None for all.

        Returns:
            Seconds from the manifest to the marker on the disk.
        """
        node = [node for node in self.plan.nodes.values() if node.stage == stage][-1 if last else 0]
        if n is not None:
            key = "test" if "test" in node.content else "images"
            if len(node.content[key]) < n:
                raise ValueError(f"{stage} has {len(node.content[key])} images, not {n}")
            node = replace(node, content=node.content | {key: node.content[key][:n]})
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

        run, level = STAGES[stage].load(), logging.root.manager.disable
        # Libraries print; a sweep sends it to the stage's log.
        logging.disable(logging.WARNING)

        def work() -> None:
            # Later stages read an input's content from its manifest.
            write_started(context.run_dir, {"content": node.content})
            write_done(context.run_dir, run(context))

        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return timed(work, device=self.device)
        finally:
            logging.disable(level)

    def embed_anew(self, *, last: bool = False, n: int) -> Seconds:
        """Run the stage `embed` with no embedding in the store."""
        shutil.rmtree(self.store.root / "store" / "embeddings", ignore_errors=True)
        return self.run("embed", last=last, n=n)
