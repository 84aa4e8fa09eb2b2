"""An extension for tests: outlines are planted in what Stable Diffusion of random weights draws.

Such a network draws noise, from which no outline can be read; everything else runs as it does.
"""

from dataclasses import replace

from lightning_modules.generators.table import GENERATORS

GENERATORS["stable_diffusion"] = replace(
    GENERATORS["stable_diffusion"], draw="planted:draw_candidates"
)


def draw_candidates(context, module, ids):
    """`stages.stable_diffusion.draw_candidates` with an ellipse in each picture's third channel."""
    import torch

    from datamodules.ellipse import Ellipse
    from datamodules.outline import draw_outline
    from experiments.stages import stable_diffusion

    drawn = module.draw

    def draw(prompts, **settings):
        pictures = drawn(prompts, **settings)
        assert torch.isfinite(pictures).all()
        height, width = pictures.shape[-2:]
        for number, picture in enumerate(pictures):
            centre = (width * (0.45 + 0.01 * (number % 10)), height * 0.5)
            ellipse = Ellipse(
                center_x_px=centre[0],
                center_y_px=centre[1],
                semi_major_px=width * 0.3,
                semi_minor_px=height * 0.25,
                theta_rad=0.1 * number,
            )
            line = draw_outline(ellipse, size_hw=(height, width), thickness_px=3.0)
            picture[2] = torch.from_numpy(line).to(picture)
        return pictures

    module.draw = draw
    try:
        yield from stable_diffusion.draw_candidates(context, module, ids)
    finally:
        del module.draw
