"""One image through a segmenter: where its prompt lies in the frame, and in a smaller view."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.stages.image_logits import image_logits

BOX = (10, 5, 29, 24)
"""Of an image of 54x80; its edges lie half a pixel further out."""


class Asked:
    """A segmenter that keeps the boxes that it is asked for; its frame has twice the sides."""

    device = "cpu"
    config = SimpleNamespace(frame_hw=(108, 160), resize_mode="squash", image_factor=1)

    def __init__(self):
        self.boxes = []

    def predict(self, batch, boxes):
        self.boxes += boxes.tolist()
        logits = torch.full((1, 1, 108, 160), -1.0)
        logits[..., 30:50, 40:70] = 1.0
        return logits


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[0, 0, 159, 107]]),
        ({"prompt": "predicted_box"}, [[0, 0, 159, 107], [40, 30, 69, 49]]),
        # Edges at 9.5 and 29.5 are 19.5 and 59.5 in the frame, 49.5 and 69.5 in its half.
        ({"box": BOX}, [[20, 10, 59, 49]]),
        ({"box": BOX, "view_zoom": 0.5}, [[50, 32, 69, 51]]),
    ],
)
def test_boxes_of_the_frame_by_hand(options, expected):
    asked = Asked()
    logits = image_logits(asked, np.zeros((54, 80), np.uint8), name="a", **options)
    assert logits.shape == (54, 80)
    assert asked.boxes == expected
