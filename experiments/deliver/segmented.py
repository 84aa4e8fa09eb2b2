"""Images through fitted segmenters, with a sign of life. Torch-free until it starts."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments.deliver.confidence import VIEW_ZOOM, Box

PROMPTS = ("whole_image", "predicted_box")
"""Prompts that need no reference."""
_PLAIN_EVERY_S = 15.0


def segmented(
    runs: Sequence[Path],
    paths: Mapping[str, Path],
    *,
    prompt: str,
    console: Console,
    boxes: Mapping[str, Box] | None = None,
    has_second_view: bool = False,
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None, float]]:
    """`segment_together` by runs; shows how many, in place or by a line now and then in a log.

    Yields:
        The name, the mask, the mask from the image at `VIEW_ZOOM`, mapped back (None unless
        `has_second_view`), and how well the runs agree.
    """
    # Here, because it imports torch: a wrong path is refused before that.
    from experiments.deliver.inference import load_run, segment_together

    with console.status("loading the segmenter"):
        takes_boxes = boxes is not None
        modules = [load_run(run, prompt=prompt, takes_boxes=takes_boxes) for run in runs]
    last = time.monotonic()
    with console.status("segmenting") as status:
        asked = {"prompt": prompt, "boxes": boxes}
        first = segment_together(modules, paths, **asked)
        second: Iterator[np.ndarray | None] = (None for _ in paths)
        if has_second_view:
            again = segment_together(modules, paths, **asked, view_zoom=VIEW_ZOOM)
            second = (mask for _, mask, _ in again)
        pairs = zip(first, second, strict=True)
        for done, ((name, mask, runs_dice), other) in enumerate(pairs, start=1):
            status.update(f"segmenting images {done}/{len(paths)}")
            if not console.is_terminal and time.monotonic() - last >= _PLAIN_EVERY_S:
                last = time.monotonic()
                console.print(f"segmented {done} of {len(paths)} images")
            yield name, mask, other, runs_dice
