"""Placement in the frame and back, on non-square images."""

import cv2
import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from datamodules.geometry import (
    boxes_to_frame,
    image_to_frame,
    image_to_original,
    logits_to_original,
    mask_to_frame,
    place,
    zoom,
)

SIZES_HW = [(54, 80), (80, 54), (540, 800), (563, 797), (64, 64), (1, 300), (737, 1)]


def disc(size_hw, *, center_xy, semi_axes_px):
    """Filled axis-aligned ellipse as float64 coordinates' test, independent of the package."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    radius = ((x - center_xy[0]) / semi_axes_px[0]) ** 2 + (
        (y - center_xy[1]) / semi_axes_px[1]
    ) ** 2
    return (radius <= 1).astype(np.uint8)


@pytest.mark.parametrize("size_hw", SIZES_HW)
@pytest.mark.parametrize("side", [64, 256, 1024])
def test_pad_equals_segment_anything(size_hw, side):
    placement = place(size_hw, frame_hw=(side, side), mode="pad")
    expected = ResizeLongestSide.get_preprocess_shape(*size_hw, side)
    assert placement.valid_hw == (max(1, expected[0]), max(1, expected[1]))


def test_place_by_hand():
    padded = place((540, 800), frame_hw=(256, 256), mode="pad")
    assert padded.valid_hw == (173, 256)
    assert padded.scale_x == pytest.approx(0.32)
    assert padded.scale_y == pytest.approx(173 / 540)
    assert place((54, 80), frame_hw=(64, 96), mode="pad").valid_hw == (64, 95)
    squashed = place((540, 800), frame_hw=(256, 256), mode="squash")
    assert squashed.valid_hw == (256, 256)
    assert (squashed.scale_y, squashed.scale_x) == (256 / 540, 256 / 800)


def test_place_refuses():
    with pytest.raises(ValueError, match="at least 1 px"):
        place((0, 80), frame_hw=(64, 64), mode="pad")
    with pytest.raises(ValueError, match="'crop'"):
        place((54, 80), frame_hw=(64, 64), mode="crop")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_image_to_frame_on_a_non_square_image(dtype):
    """segment_anything's ResizeLongestSide.apply_image_torch gets this size wrong."""
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (54, 80)).astype(dtype)
    placement = place(image.shape, frame_hw=(32, 32), mode="pad")
    frame = image_to_frame(image, placement)
    assert placement.valid_hw == (22, 32)
    assert frame.shape == (32, 32)
    assert frame.dtype == dtype
    assert np.array_equal(frame[:22], cv2.resize(image, (32, 22), interpolation=cv2.INTER_AREA))
    assert not frame[22:].any()


def test_image_to_frame_averages_areas():
    image = np.arange(4 * 6, dtype=np.float32).reshape(4, 6)
    frame = image_to_frame(image, place((4, 6), frame_hw=(4, 3), mode="pad"))
    expected = image.reshape(2, 2, 3, 2).mean(axis=(1, 3))
    assert np.allclose(frame[:2], expected)
    assert np.array_equal(frame[2:], np.zeros((2, 3)))


def test_image_to_frame_grows_one_axis_and_shrinks_the_other():
    image = np.tile(np.linspace(0, 1, 80, dtype=np.float32), (10, 1))
    frame = image_to_frame(image, place(image.shape, frame_hw=(40, 40), mode="squash"))
    assert np.allclose(frame, image.reshape(10, 40, 2).mean(-1)[0], atol=1e-6)


def test_image_to_frame_refuses_another_size():
    with pytest.raises(ValueError, match=r"\(80, 54\)"):
        image_to_frame(np.zeros((80, 54)), place((54, 80), frame_hw=(32, 32), mode="pad"))


@pytest.mark.parametrize("mode", ["pad", "squash"])
@pytest.mark.parametrize(
    ("size_hw", "side"), [((540, 800), 256), ((563, 797), 256), ((54, 80), 96)]
)
def test_mask_keeps_its_area(size_hw, side, mode):
    placement = place(size_hw, frame_hw=(side, side), mode=mode)
    ratios = []
    for shift in np.linspace(-0.04, 0.04, 9):
        center = (size_hw[1] * (0.5 + shift), size_hw[0] * (0.5 - shift))
        mask = disc(size_hw, center_xy=center, semi_axes_px=(size_hw[1] * 0.3, size_hw[0] * 0.4))
        frame = mask_to_frame(mask, placement)
        assert frame.dtype == np.uint8
        assert set(np.unique(frame)) == {0, 1}
        ratios.append(frame.sum() / (mask.sum() * placement.scale_x * placement.scale_y))
    assert np.mean(ratios) == pytest.approx(1, abs=0.005)
    assert np.allclose(ratios, 1, atol=0.015 if side == 96 else 0.005)


@pytest.mark.parametrize("mode", ["pad", "squash"])
def test_mask_empty_and_full(mode):
    placement = place((54, 80), frame_hw=(32, 32), mode=mode)
    assert mask_to_frame(np.zeros((54, 80), np.uint8), placement).sum() == 0
    full = mask_to_frame(np.ones((54, 80), np.uint8), placement)
    assert full.sum() == placement.valid_hw[0] * placement.valid_hw[1]


def test_boxes_by_hand():
    placement = place((540, 800), frame_hw=(256, 256), mode="squash")
    whole = boxes_to_frame(np.array([-0.5, -0.5, 799.5, 539.5]), placement)
    assert np.allclose(whole, [-0.5, -0.5, 255.5, 255.5])
    boxes = np.array([[[3, 4, 50, 60.5]], [[0, 0, 799, 539]]])
    moved = boxes_to_frame(boxes, placement)
    assert np.allclose(moved[0, 0, 0], 3.5 * 0.32 - 0.5)
    assert np.allclose(moved[0, 0, 3], 61 * 256 / 540 - 0.5)
    assert boxes_to_frame(np.zeros((0, 4)), placement).shape == (0, 4)


@pytest.mark.parametrize(("frame_hw", "mode"), [((32, 40), "pad"), ((27, 20), "squash")])
def test_boxes_follow_the_image(frame_hw, mode):
    """A blob's centroid, measured in the resized image, lies where the box says."""
    image = np.zeros((54, 80), np.float32)
    image[20:32, 44:60] = 1
    placement = place(image.shape, frame_hw=frame_hw, mode=mode)
    frame = image_to_frame(image, placement)
    y, x = np.mgrid[: frame_hw[0], : frame_hw[1]]
    box = boxes_to_frame(np.array([44 - 0.5, 20 - 0.5, 59.5, 31.5]), placement)
    assert (frame * x).sum() / frame.sum() == pytest.approx((box[0] + box[2]) / 2, abs=1e-4)
    assert (frame * y).sum() / frame.sum() == pytest.approx((box[1] + box[3]) / 2, abs=1e-4)


@pytest.mark.parametrize("low", [256, 64])
@pytest.mark.parametrize("size_hw", [(540, 800), (54, 80), (80, 54)])
def test_logits_equal_segment_anything(size_hw, low):
    placement = place(size_hw, frame_hw=(256, 256), mode="pad")
    logits = torch.randn(2, 3, low, low, generator=torch.Generator().manual_seed(0))
    sam = Sam(torch.nn.Identity(), None, None)
    sam.image_encoder.img_size = 256
    expected = sam.postprocess_masks(
        logits, input_size=placement.valid_hw, original_size=placement.original_hw
    )
    # Torch takes other kernels with one thread, whose weights differ in their last bits.
    assert torch.allclose(logits_to_original(logits, placement), expected, atol=1e-4)


def test_logits_shapes_and_precision():
    placement = place((54, 80), frame_hw=(32, 48), mode="squash")
    assert logits_to_original(torch.zeros(32, 48), placement).shape == (54, 80)
    half = logits_to_original(torch.ones(5, 1, 16, 24, dtype=torch.float16), placement)
    assert half.shape == (5, 1, 54, 80)
    assert half.dtype == torch.float32
    assert torch.all(half == 1)
    with pytest.raises(ValueError, match="rows and columns"):
        logits_to_original(torch.zeros(3), placement)


@pytest.mark.parametrize("mode", ["pad", "squash"])
def test_logits_back_to_the_mask_they_came_from(mode):
    """A linear ramp whose zero lies on a disc's outline gives the disc back nearly exactly."""
    size_hw = (540, 800)
    placement = place(size_hw, frame_hw=(256, 256), mode=mode)
    mask = disc(size_hw, center_xy=(391, 277), semi_axes_px=(260, 190))
    y, x = np.mgrid[: placement.valid_hw[0], : placement.valid_hw[1]]
    x = (x + 0.5) / placement.scale_x - 0.5
    y = (y + 0.5) / placement.scale_y - 0.5
    logits = torch.full((256, 256), -5.0)
    radius = np.sqrt(((x - 391) / 260) ** 2 + ((y - 277) / 190) ** 2)
    logits[: placement.valid_hw[0], : placement.valid_hw[1]] = torch.from_numpy(1 - radius)
    restored = (logits_to_original(logits, placement) > 0).numpy()
    dice = 2 * (restored & (mask == 1)).sum() / (restored.sum() + mask.sum())
    assert dice > 0.9995


def test_image_to_original_cuts_the_padding_and_scales_back():
    placement = place((54, 80), frame_hw=(27, 40), mode="pad")
    frame = np.arange(27 * 40, dtype=np.float32).reshape(27, 40)
    nearest = image_to_original(frame, placement, interpolation="nearest")
    assert np.array_equal(nearest, frame.repeat(2, axis=0).repeat(2, axis=1))
    padded = place((40, 80), frame_hw=(40, 40), mode="pad")
    frame = np.zeros((40, 40), np.uint8)
    frame[:20] = 7
    for interpolation in ("nearest", "linear"):
        restored = image_to_original(frame, padded, interpolation=interpolation)
        assert restored.shape == (40, 80)
        assert restored.dtype == np.uint8
        assert np.all(restored == 7)
    with pytest.raises(ValueError, match="'cubic'"):
        image_to_original(frame, padded, interpolation="cubic")
    with pytest.raises(ValueError, match="frame has shape"):
        image_to_original(np.zeros((20, 40)), padded, interpolation="linear")


def test_nearest_keeps_the_half_pixel():
    """A mask that goes into a larger frame and back is the same mask."""
    mask = disc((54, 80), center_xy=(40.3, 25.2), semi_axes_px=(30, 20))
    placement = place((54, 80), frame_hw=(256, 256), mode="squash")
    back = image_to_original(mask_to_frame(mask, placement), placement, interpolation="nearest")
    assert np.array_equal(back, mask)


def test_zoom_keeps_the_centre_and_is_undone_by_its_inverse():
    picture = torch.zeros(1, 1, 40, 60)
    picture[..., 10:30, 15:45] = 1
    small = zoom(picture, 0.5, beyond="zeros")
    # By hand: the middle half of each side becomes the middle quarter.
    assert torch.equal(small[0, 0, 15:25, 23:37], torch.ones(10, 14))
    assert not small[..., :14, :].any()
    assert small.sum() == pytest.approx(picture.sum().item() / 4, rel=0.02)
    back = zoom(small, 2.0, beyond="zeros")
    assert ((back > 0.5) == (picture > 0.5)).float().mean() > 0.97
    assert torch.equal(zoom(picture, 1.0, beyond="zeros"), picture)
    full = torch.ones(2, 1, 8, 12)
    assert zoom(full, 0.5, beyond="zeros").mean() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(zoom(full, 0.5, beyond="border"), full)
