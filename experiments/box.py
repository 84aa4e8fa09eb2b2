"""The stage behind the box figure: how much of a score does the box give away?"""

from typing import Any

import pandas as pd
import torch

from experiments.columns import PER_IMAGE
from experiments.context import StageContext
from experiments.evaluation import Protocol, Scorer, Segment, box_only_logits, evaluate
from experiments.fit import fitted_segmenter
from experiments.scoring import constant_logits, loaders_of, mean_mask
from lightning_modules.config_sam import FRAME_SIDE_PX

JITTERS_PX = (0, 5, 10, 20, 40, 80)
"""Largest outward push of a side, in pixels of a 256x256 squashed frame."""


def run_box(context: StageContext) -> dict[str, Any]:
    """Score one fitted model, the ellipse in the box and the mean mask under boxes ever looser."""
    content, status = context.node.content, context.status()
    module = fitted_segmenter(context.upstream_dir("fit"), config=context.config.segmenter)
    side = FRAME_SIDE_PX[context.config.segmenter.backbone]
    loaders = loaders_of(
        context,
        frame_hw=(side, side),
        mode="pad",
        embeddings=[context.open_embeddings("embeddings")],
    )
    scorer = Scorer(samples=context.samples, frame_hw=(side, side), mode="pad")
    train = [context.samples[k] for k in context.pick(content["images"])]
    model: Segment = lambda batch, boxes: module(batch, boxes)[0]  # noqa: E731
    constant = constant_logits(mean_mask(train))
    passes = [("model", prompt, None, model) for prompt in ("whole_image", "predicted_box")]
    passes.append(("mean_mask", "whole_image", None, constant))
    for jitter_px in JITTERS_PX:
        passes.append(("model", "jittered_box", jitter_px, model))
        ellipse = box_only_logits(jitter_max_px=jitter_px, prompt="jittered_box")
        passes.append(("ellipse", "jittered_box", jitter_px, ellipse))
    parts = []
    with torch.inference_mode():
        for done, (what, prompt, jitter_px, segment) in enumerate(passes):
            rows = evaluate(
                segment,
                loaders,
                protocol=Protocol(
                    prompts=[prompt],
                    jitter_draws=content["jitter_draws"],
                    jitter_max_px=jitter_px or 0,
                ),
                scorer=scorer,
            )
            frame = pd.DataFrame(rows, columns=list(PER_IMAGE))
            parts.append(frame.assign(what=what, jitter_px=jitter_px))
            status.update("passes", done=done + 1, total=len(passes))
    table = pd.concat(parts, ignore_index=True)
    table.to_csv(context.run_dir / "per_image.csv", index=False)
    return {"images": int(table["sample_id"].nunique()), "passes": len(passes)}
