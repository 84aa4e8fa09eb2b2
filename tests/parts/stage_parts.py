"""What the tests of stages share: contexts over the tiny HC18 folder, without a sweep."""

from pathlib import Path

from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.plan.nodes import Node
from experiments.stages.context import StageContext
from experiments.stages.data import Data, load_data
from experiments.store.runs import RunStore, write_done, write_started

SETTINGS = [
    "data.subset.n_images=null",
    "split.test=4",
    "split.val=2",
    "split.train=null",
    "segmenter.backbone=tiny",
    "synthesis.image_hw=[54,80]",
    "trainer.accelerator=cpu",
    # A process has one run of W&B, and these tests have many stages in one.
    "wandb.mode=disabled",
]


class Stages:
    """Runs single stages in a store of their own."""

    def __init__(self, hc18_folder: Path, root: Path, *more: str) -> None:
        overrides = [*SETTINGS, f"data.root={hc18_folder}", f"store.root={root}", *more]
        self.config = load_config(TOY, overrides)
        self.data: Data = load_data(self.config)
        self.store = RunStore(root)

    def contents(self, ids: list[str]) -> list[list[str]]:
        """Ids with their hashes, as a node holds them."""
        return [[sample_id, self.data.content[sample_id]] for sample_id in ids]

    def context(self, stage: str, content: dict, *, of: str = "", **upstream: str) -> StageContext:
        """The context of a stage, its folder made; `of` is its segmenter's block."""
        node = Node(stage=stage, content=content, upstream=upstream, segmenter=of)
        context = StageContext(
            config=self.config,
            node=node,
            store=self.store,
            samples=self.data.samples,
            unlabelled=self.data.unlabelled,
            rows=self.data.rows,
            content=self.data.content,
        )
        context.run_dir.mkdir(parents=True, exist_ok=True)
        return context

    def run(self, function, stage: str, content: dict, *, of: str = "", **upstream: str):
        """Run a stage as the worker does; its context and its result."""
        context = self.context(stage, content, of=of, **upstream)
        write_started(context.run_dir, {"content": context.node.content})
        result = function(context)
        write_done(context.run_dir, result)
        return context, result
