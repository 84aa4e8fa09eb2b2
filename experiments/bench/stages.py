"""Our way: the real stages of a real plan, run one by one in a store of their own."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from experiments.bench.child import Seconds, quiet, run_program, timed
from experiments.bench.measure import Bench
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
    backbone = backbone or bench.backbone
    n_images, n_test = ("null", 3) if bench.quick else (24, 6)
    accelerator, precision = ("gpu", "bf16") if bench.device == "cuda" else ("cpu", "fp32")
    words = (
        f"data.subset.n_images={n_images} data.subset.name=bench split.test={n_test} split.val=1 "
        f"split.train=null wandb.mode=disabled trainer.accelerator={accelerator} "
        f"segmenter.backbone={backbone} segmenter.batch_size=5 "
        f"segmenter.encoder_precision={precision} "
        "sweep.segmenter=[sam] evaluation.prompts=[jittered_box] evaluation.jitter_draws=5 "
        "evaluation.controls=[]"
    )
    return [
        *words.split(),
        f"data.root={bench.root()}",
        f"store.root={bench.work / name}",
        f"segmenter.weights_path={weights_of(bench, backbone) or 'null'}",
    ]


def run_sweep(words: Sequence[str]) -> Seconds:
    """A whole sweep of the demo's settings, changed, in a process of its own."""
    return run_program(["-m", "experiments", "sweep", "demo", *words])


class TrialStages:
    """The stages of one trial of the default recipe, changed, which can be run at any size."""

    def __init__(
        self, bench: Bench, *, name: str, overrides: Sequence[str], backbone: Backbone | None = None
    ) -> None:
        words = [*common_overrides(bench, name=name, backbone=backbone), *overrides]
        self.config, self.device = load_config(None, words), bench.device
        self.data, self.store = load_data(self.config), RunStore(Path(self.config.store.root))
        self.plan = make_plan(self.config, self.data)

    def run(self, stage: str, *, last: bool = False, n: int | None = None) -> Seconds:
        """Run a stage anew as its worker does, in this process, from its manifest to its marker.

        It is the first or `last` one of its kind in the plan, on the first `n` of its images.
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
            content=self.data.content,
        )
        shutil.rmtree(context.run_dir, ignore_errors=True)
        context.run_dir.mkdir(parents=True)
        run = STAGES[stage].load()

        def work() -> None:
            # Later stages read an input's content from its manifest.
            write_started(context.run_dir, {"content": node.content})
            write_done(context.run_dir, run(context))

        with quiet():
            return timed(work, device=self.device)

    def embed_anew(self, *, last: bool = False, n: int) -> Seconds:
        """Run the stage `embed` with no embedding in the store."""
        shutil.rmtree(self.store.root / "store" / "embeddings", ignore_errors=True)
        return self.run("embed", last=last, n=n)
