"""Whole sweeps at toy size, by the command line's words."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pandas as pd
from toy_recipe import TOY

from experiments.__main__ import main

SETTINGS = [
    "name=toy",
    "data.subset.n_images=null",
    "split.test=4",
    "split.val=2",
    "split.train=null",
    "segmenter.backbone=tiny",
    "segmenter.steps=6",
    "segmenter.batch_size=2",
    "segmenter.warmup_steps=1",
    # At the default rate six steps end with empty masks, which are all the same.
    "segmenter.learning_rate=1e-5",
    "generator.size_hw=[32,48]",
    "generator.block_out_channels=[8,16]",
    "generator.steps=6",
    "generator.batch_size=4",
    "generator.warmup_steps=1",
    "synthesis.generator_count=4",
    "synthesis.n_candidates=4",
    "synthesis.image_hw=[54,80]",
    "synthesis.sampler.num_inference_steps=2",
    "gate.min_agreement=0",
    "gate.intensity_slack=100",
    "gate.copy_quantile=1",
    "sweep.real_fraction=[0.5,1.0]",
    "evaluation.jitter_draws=2",
    "statistics.bootstrap_samples=100",
    "trainer.checkpoint_every=2",
    "trainer.checkpoint_s=0",
    "trainer.threads=1",
]
TWO_STEPS = [
    "unet.size_hw=[32,64]",
    "unet.decoder_channels=[16,8,8,8,8]",
    "unet.steps=2",
    "unet.batch_size=2",
    "unet.warmup_steps=1",
    "segmenter.steps=2",
    "generator.steps=2",
    "synthesis.n_candidates=2",
]
"""Every network for two steps, two candidates."""
# Less to score, where the scores are not what a test is about.
LEAN = ["evaluation.controls=[]", "evaluation.prompts=[whole_image]"]


def command(data: Path, store: Path, *changes: str, name: str = "sweep") -> list[str]:
    roots = [f"data.root={data}", f"store.root={store}"]
    # The command refuses a key that is given twice.
    words = {word.partition("=")[0]: word for word in [*SETTINGS, *roots, *changes]}
    return [sys.executable, "-m", "experiments", name, TOY, *words.values()]


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return {**kept, "OMP_WAIT_POLICY": "PASSIVE", "HOME": "/nonexistent", "COLUMNS": "120"}


def call(words: list[str]) -> subprocess.CompletedProcess:
    """What `python -m experiments` does, here: one server then forks the stages of all sweeps."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, environment(), clear=True),
        mock.patch.object(sys, "argv", ["sonosweep", *words[3:]]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def run(data: Path, store: Path, *changes: str, name: str = "sweep") -> subprocess.CompletedProcess:
    return call(command(data, store, *changes, name=name))


def scores(store: Path) -> pd.DataFrame:
    frame = pd.read_csv(store / "toy" / "per_image.csv")
    return frame.sort_values(
        ["trial_id", "prompt", "draw", "output", "sample_id"], ignore_index=True
    )


def made(store: Path, stage: str) -> set[str]:
    """Names of a stage's folders, or of the files below `embeddings`."""
    folder = store / "store" / stage
    pattern = "*/*" if stage == "embeddings" else "*"
    return {path.name for path in folder.glob(pattern)}


def weights(store: Path) -> dict[str, bytes]:
    """What was fitted, byte for byte, by run."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in (store / "store").glob("*/*/**/*.safetensors")
    }
