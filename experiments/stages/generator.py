"""The stages of a generator, whichever it is: fit it, draw its candidates."""

from typing import Any

from experiments.stages.context import StageContext
from experiments.stages.pixel import run_pixel_generator, run_pixel_synthesize


def run_generator(context: StageContext) -> dict[str, Any]:
    """Fit the recipe's generator on its labelled images."""
    if "stable_diffusion" in context.node.content:
        # Its libraries take seconds to import, which no other stage should pay.
        from experiments.stages.stable_diffusion import run_stable_diffusion

        return run_stable_diffusion(context)
    return run_pixel_generator(context)


def run_synthesize(context: StageContext) -> dict[str, Any]:
    """Draw the candidates of a generator."""
    if "stable_diffusion" in context.node.content:
        from experiments.stages.stable_diffusion import run_stable_synthesize

        return run_stable_synthesize(context)
    return run_pixel_synthesize(context)
