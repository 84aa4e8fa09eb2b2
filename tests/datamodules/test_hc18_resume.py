"""HC18DataModule: a training that was interrupted continues exactly, and workers change nothing."""

import pytest
import torch
from hc18_parts import TinyModule, builder, fit, five_pairs, ready, weights


@pytest.fixture
def pairs(tmp_path):
    return five_pairs(tmp_path / "synthetic")


@pytest.fixture
def make(hc18_folder, tmp_path):
    return builder(hc18_folder, tmp_path / "cache")


@pytest.mark.parametrize(
    ("num_workers", "stop_at", "stop_in", "saved_at"),
    [
        (0, 5, "training", 5),
        (0, 5, "training", 3),
        (0, 6, "training", 6),
        (0, 4, "validation", 4),
        (2, 5, "training", 5),
        (2, 5, "training", 3),
    ],
)
def test_resume_is_exact(make, pairs, tmp_path, num_workers, stop_at, stop_in, saved_at):
    """From the checkpoint of the interruption, or from an earlier one after a kill."""

    def build():
        return make(synthetic=pairs, num_workers=num_workers)

    every = 2 if stop_in == "validation" else None
    whole = TinyModule()
    fit(whole, build(), tmp_path / "whole", validate_every=every)
    assert [draw for draw, _ in whole.seen] == list(range(9 * 4))
    stopped = TinyModule(stop_at=stop_at, stop_in=stop_in)
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(stopped, build(), tmp_path / "runs", validate_every=every)
    assert stopped.seen == whole.seen[: stop_at * 4]
    resumed = TinyModule()
    trainer = fit(
        resumed,
        build(),
        tmp_path / "runs",
        checkpoint=str(tmp_path / "runs" / f"step={saved_at}.ckpt"),
        validate_every=every,
    )
    assert trainer.global_step == 9
    assert resumed.seen == whole.seen[saved_at * 4 :]
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(stopped), weights(whole))


def test_resume_of_a_finished_training_does_nothing(make, tmp_path):
    """Killed between the last step and the end of the run."""
    whole = TinyModule()
    fit(whole, make(), tmp_path)
    resumed = TinyModule()
    trainer = fit(resumed, make(), tmp_path, checkpoint=str(tmp_path / "step=9.ckpt"))
    assert trainer.global_step == 9
    assert resumed.seen == []
    assert torch.equal(weights(resumed), weights(whole))


def test_workers_change_nothing(make, pairs):
    alone, shared = (
        [
            (b["sample_id"], b["draw"].tolist(), b["image"])
            for b in ready(make(synthetic=pairs, num_workers=n)).train_dataloader()
        ]
        for n in (0, 2)
    )
    assert [x[:2] for x in alone] == [x[:2] for x in shared]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(alone, shared, strict=True))
