"""The stage behind the box figure: how much of a score comes from the box alone?"""

from typing import Any

import pandas as pd
import torch

from experiments.plan.box_passes import PASSES
from experiments.stages.context import StageContext
from experiments.stages.device import device_of
from experiments.stages.evaluation import Protocol, Scorer, box_only_logits, evaluate
from experiments.stages.fit import fitted_segmenter
from experiments.stages.scoring import (
    constant_logits,
    frame_of,
    loaders_of,
    mean_mask,
    segment_with,
)
from experiments.store.columns import PER_IMAGE


def run_box(context: StageContext) -> dict[str, Any]:
    """Score a fitted model, the ellipse in the box and the mean mask under increasing jitter."""
    content, status = context.node.content, context.status()
    config = context.segmenter
    module = fitted_segmenter(context.upstream_dir("fit"), config=config)
    cached = "embeddings" in context.node.upstream
    loaders = loaders_of(
        context,
        frame=frame_of(config, cached=cached),
        embeddings=[context.open_embeddings("embeddings")] if cached else None,
    )
    scorer = Scorer(samples=context.samples, frame_hw=config.frame_hw, mode=config.resize_mode)
    train = [context.samples[k] for k in context.pick(content["images"])]
    model = segment_with(module, device=device_of(context.config))
    constant = constant_logits(mean_mask(train))
    parts = []
    with torch.inference_mode():
        for done, (what, prompt, jitter_px) in enumerate(PASSES):
            # The ellipse is pulled in by what its box is pushed out.
            ellipse = box_only_logits(jitter_max_px=jitter_px or 0, prompt=prompt)
            rows = evaluate(
                {"model": model, "mean_mask": constant, "ellipse": ellipse}[what],
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
            status.update("passes", done=done + 1, total=len(PASSES))
    table = pd.concat(parts, ignore_index=True)
    table.to_csv(context.run_dir / "per_image.csv", index=False)
    return {"images": int(table["sample_id"].nunique()), "passes": len(PASSES)}
