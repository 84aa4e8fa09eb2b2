"""A stage that makes pairs, and the condition `mirrored` that asks for them."""

import numpy as np

from datamodules.annotation import annotation_of, read_image
from datamodules.synthetic import SyntheticPair, write_metadata, write_pair
from experiments.config.conditions import (
    CONDITIONS,
    PAIRS,
    ConditionConfig,
    ConditionRow,
    PairSource,
)
from experiments.plan.stage_table import STAGES, StageRow


def run_mirror(context):
    """Mirror a trial's labelled images left to right, in turn, until there are enough."""
    content, pairs = context.node.content, []
    ids = context.pick(content["images"])
    for number in range(content["n"]):
        sample = context.samples[ids[number % len(ids)]]
        image, mask = read_image(sample.image_path), annotation_of(sample).mask
        name = f"mirror-{number:05d}"
        write_pair(context.run_dir, name, image=np.fliplr(image), mask=np.fliplr(mask))
        pairs.append(SyntheticPair(sample_id=name))
    write_metadata(context.run_dir / "metadata.jsonl", pairs)
    return {"pairs": len(pairs)}


STAGES["mirror"] = StageRow(
    run="my_rooms.mirror:run_mirror", first_guess_s=0.05, units=("content.n",)
)
PAIRS["mirror"] = PairSource(stage="mirror", called="mirrored")
CONDITIONS["mirrored"] = ConditionRow(
    factors=ConditionConfig(pairs="mirror"),
    label="+ mirrored pairs",
    phrase="mirrored pairs",
    color="#6a3d9a",
    marker="H",
)
