"""What is believed and what is doubted: a head, nothing, noise, shapes that are no head."""

import cv2
import numpy as np
import pytest

from datamodules.ellipse import Ellipse, rasterise
from datamodules.head_ellipse import head_ellipse
from experiments.deliver.confidence import MIN_CONFIDENCE, judge

SIZE_HW = (135, 200)
HEAD = Ellipse(
    center_x_px=95.3, center_y_px=70.6, semi_major_px=55.4, semi_minor_px=41.7, theta_rad=2.6
)
SPECKLE = np.random.default_rng(0).integers(0, 255, SIZE_HW, np.uint8)


def judged(mask, *, image=SPECKLE, second=None):
    second = mask if second is None else second
    return judge(image, mask=mask, second_mask=second, ellipse=head_ellipse(mask))


def head(**changes):
    return rasterise(Ellipse(**{**vars(HEAD), **changes}), size_hw=SIZE_HW)


def test_a_head_that_both_views_show_is_believed():
    confidence, reason = judged(head(), second=head(semi_minor_px=40.7))
    assert reason == ""
    assert 0.97 < confidence < 1


def test_a_black_image_is_doubtful_whatever_is_found_in_it():
    black = np.zeros(SIZE_HW, np.uint8)
    assert judged(black, image=black)[1] == "the image is nearly constant; no ellipse fits"
    assert judged(head(), image=black)[1] == "the image is nearly constant"


def test_masks_of_noise_are_doubtful():
    rng = np.random.default_rng(1)
    blobs = [cv2.GaussianBlur(rng.normal(size=SIZE_HW), (0, 0), 6) > 0.02 for _ in range(2)]
    confidence, reason = judged(blobs[0].astype(np.uint8), second=blobs[1].astype(np.uint8))
    assert reason
    assert confidence < 0.7


@pytest.mark.parametrize(
    ("mask", "second", "reason"),
    [
        (head(), head(center_x_px=115.0), "agree by 0."),
        (head(semi_major_px=60.0, semi_minor_px=25.0), None, "less than 0.5 as wide"),
        (head(semi_major_px=9.0, semi_minor_px=8.0), None, "less than 1% of the image"),
    ],
)
def test_each_doubt_has_its_reason(mask, second, reason):
    confidence, found = judged(mask, second=second)
    assert reason in found
    assert ";" not in found
    assert (confidence < MIN_CONFIDENCE) == ("agree" in reason)
