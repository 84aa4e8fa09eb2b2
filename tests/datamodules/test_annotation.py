import math

import cv2
import numpy as np
import pytest

from datamodules.annotation import (
    MAX_RESIDUAL_PX,
    parse_annotation,
    read_annotation,
    read_image,
)
from datamodules.cohort import read_cohort
from datamodules.ellipse import Ellipse, contour_distance_px, perimeter_px, rasterise
from datamodules.errors import InputError
from datamodules.samples import FILLED_BIAS_PX, read_hc18

HEAD = Ellipse(
    center_x_px=40.3, center_y_px=26.6, semi_major_px=22.4, semi_minor_px=16.7, theta_rad=0.3
)
BIG = Ellipse(
    center_x_px=400.3, center_y_px=262.6, semi_major_px=224.0, semi_minor_px=167.0, theta_rad=0.3
)


def outline(ellipse: Ellipse, *, size_hw=(54, 80), half_px=1.25) -> np.ndarray:
    points = np.stack(np.mgrid[: size_hw[0], : size_hw[1]][::-1], axis=-1)
    distance = contour_distance_px(ellipse, points).reshape(size_hw)
    return (np.abs(distance) <= half_px).astype(np.uint8)


def dice(first, second) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def save(path, mask, *, channels=1):
    pixels = 255 * mask
    cv2.imwrite(str(path), pixels if channels == 1 else np.repeat(pixels[..., None], 3, axis=2))
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_outline_gives_the_ellipse_that_it_was_drawn_on(tmp_path, channels):
    path = save(tmp_path / "a.png", outline(HEAD), channels=channels)
    found = read_annotation(path, filled_bias_px=FILLED_BIAS_PX)
    assert (found.kind, found.is_open, found.touches_border) == ("outline", False, False)
    assert found.mask.dtype == np.uint8
    assert perimeter_px(found.ellipse) == pytest.approx(perimeter_px(HEAD), rel=2e-3)
    assert dice(found.mask, rasterise(HEAD, size_hw=(54, 80))) > 0.995
    assert found.residual_px < 0.3


def test_coloured_and_16_bit_annotations_are_read(tmp_path):
    red = np.zeros((54, 80, 3), dtype=np.uint8)
    red[..., 2] = 255 * outline(HEAD)
    cv2.imwrite(str(tmp_path / "red.png"), red)
    cv2.imwrite(str(tmp_path / "deep.png"), outline(HEAD).astype(np.uint16) * 65535)
    expected = parse_annotation(outline(HEAD), name="a").mask
    np.testing.assert_array_equal(read_annotation(tmp_path / "red.png").mask, expected)
    np.testing.assert_array_equal(read_annotation(tmp_path / "deep.png").mask, expected)


@pytest.mark.parametrize("drawn", [outline(HEAD), rasterise(HEAD, size_hw=(54, 80))])
@pytest.mark.parametrize("values", [(0, 1), (0, 100), (0, 128), (200, 255)])
def test_of_two_values_the_larger_is_the_head(tmp_path, drawn, values):
    expected = parse_annotation(drawn, name="a").mask
    for dtype in (np.uint8, np.uint16):
        pixels = np.where(drawn > 0, values[1], values[0]).astype(dtype)
        cv2.imwrite(str(tmp_path / "a.png"), pixels)
        np.testing.assert_array_equal(read_annotation(tmp_path / "a.png").mask, expected)


def test_a_map_of_labels_needs_the_heads_label(tmp_path):
    head, path = rasterise(HEAD, size_hw=(54, 80)), tmp_path / "a.png"
    labels = head.copy()
    labels[:6, :6], labels[-6:, -6:] = 2, 3
    cv2.imwrite(str(path), labels)
    np.testing.assert_array_equal(read_annotation(path, label=1).mask, head)
    with pytest.raises(InputError, match=r"holds the values 0, 1, 2, 3; .*data\.label"):
        read_annotation(path)
    with pytest.raises(InputError, match="no pixel has the label 7, only 0, 1, 2, 3"):
        read_annotation(path, label=7)


@pytest.mark.parametrize(("head_value", "other"), [(128, 255), (255, 128), (255, 127), (2, 255)])
def test_grey_regions_of_two_values_need_the_heads_label(tmp_path, head_value, other):
    head, path = rasterise(HEAD, size_hw=(54, 80)), tmp_path / "a.png"
    labels = head * np.uint8(head_value)
    labels[:8, :8] = other
    cv2.imwrite(str(path), labels)
    with pytest.raises(InputError, match=r"holds the values .*data\.label .*data\.cohort_labels"):
        read_annotation(path)
    np.testing.assert_array_equal(read_annotation(path, label=head_value).mask, head)


def test_few_grey_values_along_the_edge_are_no_labels(tmp_path):
    head = rasterise(BIG, size_hw=(540, 800))
    edge = cv2.dilate(head, np.ones((5, 5), np.uint8)) - head
    for between in (100, 200):
        cv2.imwrite(str(tmp_path / "a.png"), head * np.uint8(255) + edge * np.uint8(between))
        assert dice(read_annotation(tmp_path / "a.png").mask, head) > 0.97


def test_regions_of_several_colours_are_refused(tmp_path):
    head, path = rasterise(HEAD, size_hw=(54, 80)), tmp_path / "a.png"
    pixels = np.zeros((54, 80, 3), np.uint8)
    pixels[..., 2] = 128 * head
    cv2.imwrite(str(path), pixels)
    np.testing.assert_array_equal(read_annotation(path).mask, head)
    pixels[:8, :8, 1] = 128
    cv2.imwrite(str(path), pixels)
    for label in (None, 128):
        with pytest.raises(InputError, match="regions of several colours"):
            read_annotation(path, label=label)
    pixels[:8, :8, 1] = 200
    cv2.imwrite(str(path), pixels)
    np.testing.assert_array_equal(read_annotation(path, label=128).mask, head)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_a_hole_in_a_filled_head_is_filled(share):
    head = rasterise(BIG, size_hw=(540, 800))
    hole = Ellipse(
        center_x_px=380.0, center_y_px=250.0, semi_major_px=224 * share,
        semi_minor_px=167 * share, theta_rad=0.0,
    )  # fmt: skip
    found = parse_annotation(head - rasterise(hole, size_hw=(540, 800)), name="a")
    assert found.kind == "filled"
    np.testing.assert_array_equal(found.mask, head)
    assert perimeter_px(found.ellipse) == pytest.approx(perimeter_px(BIG), abs=0.2)


def test_alpha_counts_where_the_colours_say_nothing(tmp_path):
    head, path = rasterise(HEAD, size_hw=(54, 80)), tmp_path / "a.png"
    for colour in (0, 255):
        cv2.imwrite(str(path), np.dstack([np.full((54, 80, 3), colour, np.uint8), 255 * head]))
        np.testing.assert_array_equal(read_annotation(path).mask, head)
    cv2.imwrite(str(path), np.dstack([*[255 * head] * 3, np.full_like(head, 90)]))
    np.testing.assert_array_equal(read_annotation(path).mask, head)


def test_a_smoothed_mask_is_cut_at_half_its_height(tmp_path):
    head = rasterise(BIG, size_hw=(540, 800))
    for top in (128, 255):
        cv2.imwrite(str(tmp_path / "a.png"), cv2.GaussianBlur(head * np.uint8(top), (0, 0), 2))
        assert dice(read_annotation(tmp_path / "a.png").mask, head) > 0.999


def test_filled_mask_of_another_cohort_stays_untouched_and_unbiased(tmp_path):
    mask = rasterise(BIG, size_hw=(540, 800))
    found = read_annotation(save(tmp_path / "a.png", mask, channels=3))
    assert found.kind == "filled"
    np.testing.assert_array_equal(found.mask, mask)
    assert perimeter_px(found.ellipse) == pytest.approx(perimeter_px(BIG), abs=0.2)


def test_filled_mask_loses_the_bias():
    grown = Ellipse(
        center_x_px=400.3, center_y_px=262.6, semi_major_px=225.4, semi_minor_px=168.4,
        theta_rad=0.3,
    )  # fmt: skip
    found = parse_annotation(rasterise(grown, size_hw=(540, 800)), name="a", filled_bias_px=1.4)
    assert found.kind == "filled"
    assert perimeter_px(found.ellipse) == pytest.approx(perimeter_px(BIG), abs=0.2)
    assert dice(found.mask, rasterise(BIG, size_hw=(540, 800))) > 0.9995


def test_outline_cut_by_the_border_is_open_and_unbiased():
    cut = Ellipse(
        center_x_px=400.0, center_y_px=140.0, semi_major_px=224.0, semi_minor_px=167.0,
        theta_rad=0.3,
    )  # fmt: skip
    found = parse_annotation(outline(cut, size_hw=(540, 800)), name="a")
    assert (found.kind, found.is_open, found.touches_border) == ("outline", True, True)
    assert perimeter_px(found.ellipse) == pytest.approx(perimeter_px(cut), abs=0.5)
    assert dice(found.mask, rasterise(cut, size_hw=(540, 800))) > 0.999


def test_outline_cut_into_two_arcs_is_one_head():
    wide = Ellipse(
        center_x_px=400, center_y_px=270, semi_major_px=330, semi_minor_px=290, theta_rad=0.0
    )
    found = parse_annotation(outline(wide, size_hw=(540, 800)), name="a")
    assert found.is_open
    assert perimeter_px(found.ellipse) == pytest.approx(perimeter_px(wide), abs=1.0)


def test_outline_that_grazes_the_border_is_closed():
    grazing = Ellipse(
        center_x_px=400, center_y_px=167.3, semi_major_px=224, semi_minor_px=167, theta_rad=0.0
    )
    found = parse_annotation(outline(grazing, size_hw=(540, 800)), name="a")
    assert (found.is_open, found.touches_border) == (False, True)
    assert perimeter_px(found.ellipse) == pytest.approx(perimeter_px(grazing), abs=0.3)


def test_filled_mask_cut_by_the_border_does_not_bend_the_fit():
    cut = Ellipse(
        center_x_px=400, center_y_px=140, semi_major_px=224, semi_minor_px=167, theta_rad=0.3
    )
    found = parse_annotation(rasterise(cut, size_hw=(540, 800)), name="a")
    assert (found.kind, found.touches_border) == ("filled", True)
    assert perimeter_px(found.ellipse) == pytest.approx(perimeter_px(cut), abs=0.5)


def test_outline_drawn_by_hand_is_filled_to_the_lines_centre():
    size_hw = (540, 800)
    angle = np.linspace(0, 2 * math.pi, 2000)
    radius = 150 + 12 * np.sin(5 * angle)
    points = np.stack([400 + radius * np.cos(angle), 270 + radius * np.sin(angle)], axis=1)
    line, filled = np.zeros(size_hw, np.uint8), np.zeros(size_hw, np.uint8)
    cv2.polylines(line, [np.round(points).astype(np.int32)], True, 1, thickness=5)
    cv2.fillPoly(filled, [np.round(points).astype(np.int32)], 1)
    found = parse_annotation(line, name="a")
    assert found.kind == "outline"
    assert found.residual_px > MAX_RESIDUAL_PX
    assert dice(found.mask, filled) > 0.997
    assert dice(rasterise(found.ellipse, size_hw=size_hw), filled) < 0.97


def test_filled_mask_that_is_no_ellipse_is_kept_even_with_a_bias():
    mask = np.zeros((540, 800), np.uint8)
    mask[150:400, 200:600] = 1
    found = parse_annotation(mask, name="a", filled_bias_px=1.4)
    np.testing.assert_array_equal(found.mask, mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((54, 80), np.uint8), "no outline"),
        (np.eye(54, 80, dtype=np.uint8), "no ellipse|pieces"),
        (np.ones((54, 80), np.uint8), "corners"),
        (1 - outline(HEAD), "corners"),
        (np.pad(outline(HEAD), ((0, 0), (0, 60))) | np.pad(outline(HEAD), ((0, 0), (60, 0))), "2 "),
    ],
    ids=["empty", "line", "full", "inverted", "twins"],
)
def test_unusable_annotations_are_refused_by_name(tmp_path, mask, message):
    path = save(tmp_path / "bad_Annotation.png", mask)
    with pytest.raises(InputError, match=rf"bad_Annotation\.png.*({message})"):
        read_annotation(path)


def test_truncated_and_damaged_files_are_refused(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (54, 80), dtype=np.uint8)
    whole = tmp_path / "whole.png"
    cv2.imwrite(str(whole), image)
    data = whole.read_bytes()
    for length in range(0, len(data), 97):
        (tmp_path / "cut.png").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.png"):
            read_image(tmp_path / "cut.png")
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    (tmp_path / "flipped.png").write_bytes(flipped)
    with pytest.raises(InputError, match="damaged"):
        read_image(tmp_path / "flipped.png")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "missing.png")
    np.testing.assert_array_equal(read_image(whole), image)


def test_colour_and_16_bit_images_become_grey(tmp_path):
    grey = np.arange(54 * 80, dtype=np.uint32).reshape(54, 80) % 256
    cv2.imwrite(str(tmp_path / "c.png"), np.repeat(grey[..., None].astype(np.uint8), 4, axis=2))
    cv2.imwrite(str(tmp_path / "d.png"), (grey * 257).astype(np.uint16))
    np.testing.assert_array_equal(read_image(tmp_path / "c.png"), grey)
    np.testing.assert_array_equal(read_image(tmp_path / "d.png"), grey)
    # 12 bit of 16, as many scanners write them: as `predict` shows them.
    cv2.imwrite(str(tmp_path / "e.png"), (grey * 16).astype(np.uint16))
    np.testing.assert_array_equal(read_image(tmp_path / "e.png"), grey)


def test_every_fixture_annotation_gives_its_csv_hc(hc18_folder):
    for sample in read_hc18(hc18_folder):
        found = read_annotation(sample.annotation_path)
        # A pixel is 1 to 3 mm here: a fifth of a pixel in the radius.
        hc_mm = perimeter_px(found.ellipse) * sample.pixel_size_mm
        assert abs(hc_mm - sample.hc_mm) < 0.4 * math.pi * sample.pixel_size_mm


def test_cohort_masks_are_read_as_they_are(tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "mask").mkdir()
    mask = rasterise(HEAD, size_hw=(54, 80))
    save(tmp_path / "image" / "a.png", mask)
    save(tmp_path / "mask" / "a_Annotation.png", mask)
    (sample,) = read_cohort(tmp_path)
    assert sample.filled_bias_px == 0
    np.testing.assert_array_equal(read_annotation(sample.annotation_path).mask, mask)
