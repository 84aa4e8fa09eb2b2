"""The gate as a stage: whose limits count, what is near to what, and what is kept."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from stage_parts import Stages

from datamodules.annotation import annotation_of, image_of
from datamodules.synthetic import SyntheticPair, read_metadata, write_metadata, write_pair
from experiments.stages import gate_stage
from experiments.stages.agreement import label_agreement
from experiments.stages.gate import limits_from_real

OWN = ["003_HC", "004_HC", "004_2HC", "004_3HC", "007_HC"]
"""Three frames are of one exam."""


class Bright:
    """A judge that takes what is bright for the head."""

    config, device = SimpleNamespace(), "cpu"

    def predict(self, batch, boxes):
        return batch["image"] - 0.5


@pytest.fixture
def gated(hc18_folder, tmp_path, monkeypatch):
    """Runs the gate over copies of two of its own images; gives context and result."""
    monkeypatch.setattr(gate_stage, "segmenter_of", lambda *_: Bright())

    def run(*words):
        stages = Stages(hc18_folder, tmp_path / "runs", *words)
        source = stages.context("synthesize", {})
        for name, copied in (("a", "007_HC"), ("b", "003_HC")):
            sample = stages.data.samples[copied]
            mask = annotation_of(sample).mask
            write_pair(source.run_dir, name, image=image_of(sample), mask=mask[:, ::-1])
        pairs = [SyntheticPair(sample_id=name) for name in "ab"]
        write_metadata(source.run_dir / "metadata.jsonl", pairs)
        upstream = dict.fromkeys(("candidates", "segmenter"), source.node.key)
        content = {"images": stages.contents(OWN)}
        return stages.run(gate_stage.run_gate, "gate", content, of="unet", **upstream)

    return run


def test_a_gate_that_is_off_keeps_all_and_writes_down_what_it_measured(gated):
    context, result = gated("gate.enabled=false", "gate.copy_min_correlation=0")
    assert (result["accepted"], result["rejected"]) == (2, 0)
    kept = {pair.sample_id: pair for pair in read_metadata(context.run_dir / "metadata.jsonl")}
    assert [kept[name].gate["nearest"] for name in "ab"] == ["007_HC", "003_HC"]
    assert [kept[name].gate["similarity"] for name in "ab"] == pytest.approx([1, 1])
    # The limits are those of the real images and their labels, exam by exam.
    samples = [context.samples[name] for name in OWN]
    judged = label_agreement(context, samples, judge=Bright(), role="")
    limits = limits_from_real(
        [image_of(sample) for sample in samples],
        groups=[sample.exam_id for sample in samples],
        agreement=[each.dice for each in judged.values()],
        config=context.config.gate,
    )
    assert result["limits"] == asdict(limits)
    made = [kept[name].gate["agreement"] for name in "ab"]
    assert result["mean_agreement"] == pytest.approx(np.mean(made))
    assert made != [judged[name].dice for name in ("007_HC", "003_HC")]
