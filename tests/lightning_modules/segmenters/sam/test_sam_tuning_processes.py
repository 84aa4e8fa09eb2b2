"""Each tuning mode over two processes gives the weights of one."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from test_sam_tuning import MODES, fit, make_config

from lightning_modules.segmenters.sam.module import SamModule

DDP_SCRIPT = """
import sys
from pathlib import Path

import torch

from torch.utils.data import DataLoader

from lightning_modules.segmenters.sam.module import SamModule
from test_sam_tuning import Heads, make_config
from test_sam_tuning_processes import DDP_RUNS, ddp_trainer, trained_of

for mode, precision in DDP_RUNS:
    module = SamModule(make_config(mode, learning_rate=1e-5, precision=precision))
    trainer = ddp_trainer(precision)
    rank = trainer.global_rank
    # Rank r takes items r, r + 2, ...: together they are the batches of one process.
    trainer.fit(module, DataLoader(Heads(range(rank, 16, 2)), batch_size=2))
    torch.save(trained_of(module), Path(sys.argv[1]) / f"{mode}-{precision}-{rank}.pt")
"""
DDP_RUNS = [(mode, precision) for precision in ("32-true", "bf16-mixed") for mode in MODES]


def ddp_trainer(precision: str) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=2,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def trained_of(module: SamModule) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.long
def test_two_processes_equal_one_in_every_mode(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DDP_SCRIPT)
    root = Path(__file__).parents[4]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)]),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(
        [sys.executable, script, tmp_path], cwd=root, env=environment, check=True, timeout=500
    )
    for mode, precision in DDP_RUNS:
        start = SamModule(make_config(mode, learning_rate=1e-5, precision=precision))
        before = {name: p.clone() for name, p in trained_of(start).items()}
        once = trained_of(fit(start, steps=2))
        first, second = (torch.load(tmp_path / f"{mode}-{precision}-{r}.pt") for r in (0, 1))
        assert once.keys() == first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        # Two steps of AdamW move a weight by 2e-5 at most; bf16 rounds other sums otherwise.
        is_exact = precision == "32-true"
        for name, weight in once.items():
            error = (weight - first[name]).abs()
            assert (error.max() if is_exact else error.mean()) < (1e-6 if is_exact else 5e-6), name
        assert any(not torch.equal(first[name], before[name]) for name in first)
