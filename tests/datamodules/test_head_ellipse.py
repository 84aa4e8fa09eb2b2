"""The ellipse of a predicted mask: exact, bitten, spurred, cut by the border, none."""

import cv2
import numpy as np
import pytest

from datamodules.ellipse import Ellipse, rasterise
from datamodules.head_ellipse import filled_ellipse, head_ellipse

SIZE_HW = (270, 400)
HEAD = Ellipse(
    center_x_px=190.3, center_y_px=140.6, semi_major_px=110.4, semi_minor_px=82.7, theta_rad=2.6
)


def axes(ellipse):
    return pytest.approx([ellipse.semi_major_px, ellipse.semi_minor_px], abs=1.0)


def test_a_drawn_ellipse_is_recovered():
    found = head_ellipse(rasterise(HEAD, size_hw=SIZE_HW))
    assert found.semi_major_px == pytest.approx(HEAD.semi_major_px, abs=0.15)
    assert found.semi_minor_px == pytest.approx(HEAD.semi_minor_px, abs=0.15)
    assert found.center_x_px == pytest.approx(HEAD.center_x_px, abs=0.1)
    assert found.center_y_px == pytest.approx(HEAD.center_y_px, abs=0.1)
    assert found.theta_rad == pytest.approx(HEAD.theta_rad, abs=0.01)


def test_no_point_of_a_clean_outline_is_left_out_of_the_fit():
    # It ends four pixels from the right border of a frame that is wider than high.
    drawn = Ellipse(
        center_x_px=305, center_y_px=200, semi_major_px=250, semi_minor_px=190, theta_rad=0.0
    )
    mask = rasterise(drawn, size_hw=(420, 560))
    (outline,), _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    (x, y), axes_px, _ = cv2.fitEllipseDirect(outline.astype(np.float32))
    found = head_ellipse(mask)
    assert (found.center_x_px, found.center_y_px) == pytest.approx((x, y), abs=1e-3)
    halves = [axis / 2 + 0.5 for axis in sorted(axes_px)]
    assert [found.semi_minor_px, found.semi_major_px] == pytest.approx(halves, abs=1e-3)


def test_a_bite_and_a_spur_change_the_axes_by_less_than_a_pixel():
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    bitten = rasterise(HEAD, size_hw=SIZE_HW)
    bitten[np.hypot(x - 190, y - 55) < 22] = 0
    found = head_ellipse(bitten)
    assert [found.semi_major_px, found.semi_minor_px] == axes(HEAD)
    spurred = rasterise(HEAD, size_hw=SIZE_HW)
    spurred[130:142, 280:340] = 1
    found = head_ellipse(spurred)
    assert [found.semi_major_px, found.semi_minor_px] == axes(HEAD)


def test_the_largest_part_counts_and_a_corner_does_not_join_two():
    mask = np.zeros(SIZE_HW, np.uint8)
    mask[40:120, 40:120] = 1
    alone = head_ellipse(mask)
    mask[120:190, 120:190] = 1
    assert head_ellipse(mask) == alone


def test_a_head_cut_by_the_border_is_completed():
    cut = Ellipse(
        center_x_px=190.0, center_y_px=40.0, semi_major_px=110, semi_minor_px=80, theta_rad=0.0
    )
    found = head_ellipse(rasterise(cut, size_hw=SIZE_HW))
    assert [found.semi_major_px, found.semi_minor_px] == axes(cut)
    assert found.center_y_px == pytest.approx(40, abs=1)
    # A prediction may end a pixel or two before the border.
    short = rasterise(cut, size_hw=SIZE_HW)
    short[:2] = 0
    assert head_ellipse(short) == found


def test_a_part_that_is_mostly_border_is_taken_with_its_border():
    mask = np.ones((54, 80), np.uint8)
    mask[:12, :12][np.add.outer(np.arange(12), np.arange(12)) < 12] = 0
    found = head_ellipse(mask)
    assert (found.center_x_px, found.center_y_px) == pytest.approx((39.5, 26.5), abs=1)


def test_what_is_possible_goes_by_the_width():
    # Longer than twice the height, cut at both ends.
    wide = Ellipse(
        center_x_px=100, center_y_px=30, semi_major_px=130, semi_minor_px=25, theta_rad=0.0
    )
    found = head_ellipse(rasterise(wide, size_hw=(60, 200)))
    assert found.semi_major_px == pytest.approx(130, abs=2)
    # In a narrow image, up to twice its width.
    for semi_major_px, is_found in ((90, True), (140, False)):
        tall = Ellipse(
            center_x_px=30,
            center_y_px=150,
            semi_major_px=semi_major_px,
            semi_minor_px=25,
            theta_rad=np.pi / 2,
        )
        assert (head_ellipse(rasterise(tall, size_hw=(300, 60))) is not None) is is_found


@pytest.mark.parametrize(
    "drawn",
    [np.s_[:0, :0], np.s_[20, 30], np.s_[20:23, 30:33], np.s_[20:25, 30:36], np.s_[20, 30:90]],
)
def test_empty_tiny_and_straight_masks_have_none(drawn):
    mask = np.zeros((54, 80), bool)
    mask[drawn] = True
    assert head_ellipse(mask) is None
    ellipse, filled = filled_ellipse(mask)
    assert ellipse is None
    assert filled is mask


def test_a_mask_is_two_dimensional():
    with pytest.raises(ValueError, match="a mask is"):
        head_ellipse(np.ones((1, 54, 80)))
