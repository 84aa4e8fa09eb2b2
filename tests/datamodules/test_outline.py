"""The ellipse extractor and the outlines it reads."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from datamodules.annotation import parse_annotation, read_annotation
from datamodules.config_outline import ExtractorConfig
from datamodules.ellipse import Ellipse, contour_distance_px, rasterise
from datamodules.geometry import place
from datamodules.outline import (
    draw_outline,
    extract_ellipse,
    outline_to_frame,
    outline_to_original,
)
from datamodules.samples import read_hc18

SQUASHED = place((540, 800), frame_hw=(512, 512), mode="squash")
HEAD = Ellipse(
    center_x_px=250, center_y_px=260, semi_major_px=170, semi_minor_px=120, theta_rad=0.4
)


def _random_ellipse(rng: np.random.Generator) -> Ellipse:
    """Draw an ellipse as HC18's, in an image of 540x800."""
    minor = rng.uniform(70, 210)
    return Ellipse(
        center_x_px=rng.uniform(340, 460),
        center_y_px=rng.uniform(240, 300),
        semi_major_px=min(minor / rng.uniform(0.68, 0.95), 330),
        semi_minor_px=minor,
        theta_rad=rng.uniform(0, 3.14),
    )


def _contour(ellipse: Ellipse) -> np.ndarray:
    t = np.arange(720) * 2 * np.pi / 720
    cos, sin = np.cos(ellipse.theta_rad), np.sin(ellipse.theta_rad)
    u, v = ellipse.semi_major_px * np.cos(t), ellipse.semi_minor_px * np.sin(t)
    return np.stack(
        [ellipse.center_x_px + cos * u - sin * v, ellipse.center_y_px + sin * u + cos * v], axis=1
    )


def _largest_distance_px(found: Ellipse, expected: Ellipse) -> float:
    return float(np.abs(contour_distance_px(expected, _contour(found))).max())


def _drawn(ellipse: Ellipse, *, size_hw=(512, 512), thickness_px: float = 3.0) -> np.ndarray:
    return draw_outline(ellipse, size_hw=size_hw, thickness_px=thickness_px) * 255


def _grey(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _erase(picture: np.ndarray, *, ellipse: Ellipse, share: float, start_rad: float) -> None:
    """Blacken a sector that holds a share of the eccentric angle."""
    y, x = np.indices(picture.shape)
    dx, dy = x - ellipse.center_x_px, y - ellipse.center_y_px
    cos, sin = np.cos(ellipse.theta_rad), np.sin(ellipse.theta_rad)
    angle = np.arctan2(
        (cos * dy - sin * dx) / ellipse.semi_minor_px, (cos * dx + sin * dy) / ellipse.semi_major_px
    )
    picture[(angle - start_rad) % (2 * np.pi) < 2 * np.pi * share] = 0


def _disturb(picture: np.ndarray, *, what: str, ellipse: Ellipse, rng: np.random.Generator):
    if "gap" in what or "arc" in what:
        share = 0.15 if "gap" in what else 0.4
        _erase(picture, ellipse=ellipse, share=share, start_rad=rng.uniform(-np.pi, np.pi))
    if "line" in what:
        ends = [int(v) for v in rng.uniform(0, 512, 4)]
        cv2.line(picture, ends[:2], ends[2:], 255.0, 4)
    if "blob" in what:
        at = _contour(ellipse)[rng.integers(720)] + rng.uniform(-30, 30, 2)
        cv2.circle(picture, [int(v) for v in at], int(rng.integers(10, 28)), 255.0, -1)
    if "noise" in what:
        picture += rng.normal(0, 30, picture.shape).astype(np.float32)
        picture[rng.random(picture.shape) < 0.01] = 255
        picture[rng.random(picture.shape) < 0.03] = 0


@pytest.mark.parametrize("what", ["clean", "noise", "gap", "line blob", "gap noise line blob"])
def test_squash_draw_extract_undo_gives_the_ellipse_back(what):
    rng = np.random.default_rng(1)
    for _ in range(4):
        ellipse = _random_ellipse(rng)
        in_frame = outline_to_frame(ellipse, SQUASHED)
        picture = _drawn(in_frame)
        _disturb(picture, what=what, ellipse=in_frame, rng=rng)
        found = extract_ellipse(_grey(picture))
        assert found.reason is None
        assert _largest_distance_px(outline_to_original(found.ellipse, SQUASHED), ellipse) < 0.5
        assert found.residual_px < 1
        assert found.thickness_px == pytest.approx(2.5, abs=0.5)
        if what == "clean":
            assert found.closedness == 1
        if what == "gap":
            # 15 % of the eccentric angle are 11 to 20 % of the length.
            assert 0.78 < found.closedness < 0.92


@pytest.mark.parametrize("what", ["arc", "arc noise line", "arc blob"])
def test_open_arcs_are_refused(what):
    rng = np.random.default_rng(2)
    for _ in range(4):
        in_frame = outline_to_frame(_random_ellipse(rng), SQUASHED)
        picture = _drawn(in_frame)
        _disturb(picture, what=what, ellipse=in_frame, rng=rng)
        found = extract_ellipse(_grey(picture))
        assert found.ellipse is None
        assert found.closedness < 0.75
        assert found.reason is not None
        if what == "arc":
            assert found.reason == f"closedness {found.closedness:.3g} below 0.75"


def test_a_quarter_of_a_circle_is_missing():
    circle = Ellipse(
        center_x_px=256, center_y_px=256, semi_major_px=150, semi_minor_px=150, theta_rad=0.0
    )
    picture = _drawn(circle)
    _erase(picture, ellipse=circle, share=0.25, start_rad=0.3)
    found = extract_ellipse(_grey(picture), ExtractorConfig(min_closedness=0.5))
    assert found.closedness == pytest.approx(0.75, abs=0.01)
    assert _largest_distance_px(found.ellipse, circle) < 0.1
    strict = extract_ellipse(_grey(picture), ExtractorConfig(min_closedness=0.9))
    assert strict.ellipse is None
    assert strict.reason.endswith("below 0.9")


def test_of_two_lines_the_outer_one_counts():
    inner = Ellipse(
        center_x_px=250, center_y_px=260, semi_major_px=162, semi_minor_px=112, theta_rad=0.4
    )
    found = extract_ellipse(_grey(np.maximum(_drawn(HEAD), _drawn(inner))))
    assert found.reason is None
    assert _largest_distance_px(found.ellipse, HEAD) < 0.1


def test_a_wobbling_line_is_refused_by_its_residual():
    t = np.linspace(0, 2 * np.pi, 2000)
    picture = np.zeros((512, 512), dtype=np.uint8)
    radius = 1 + 6 / 145 * np.sin(9 * t)
    points = np.stack([250 + 170 * radius * np.cos(t), 260 + 120 * radius * np.sin(t)], axis=1)
    cv2.polylines(picture, [np.rint(points).astype(np.int32)], True, 255, 3)
    found = extract_ellipse(picture)
    assert found.ellipse is None
    assert 2 < found.residual_px < 6
    assert found.reason.startswith("residual share 0.0")
    assert found.reason.endswith(" above 0.01")


@pytest.mark.parametrize("size_hw", [(54, 80), (80, 54), (540, 800), (128, 192)])
def test_sizes_that_are_not_square(size_hw):
    height, width = size_hw
    ellipse = Ellipse(
        center_x_px=0.5 * width,
        center_y_px=0.48 * height,
        semi_major_px=0.4 * min(size_hw),
        semi_minor_px=0.3 * min(size_hw),
        theta_rad=0.3,
    )
    found = extract_ellipse(_grey(_drawn(ellipse, size_hw=size_hw, thickness_px=2.0)))
    assert found.reason is None
    assert _largest_distance_px(found.ellipse, ellipse) < 0.1


def test_an_outline_that_the_border_cuts():
    cut = Ellipse(
        center_x_px=250, center_y_px=100, semi_major_px=170, semi_minor_px=120, theta_rad=0.1
    )
    found = extract_ellipse(_grey(_drawn(cut)))
    assert found.reason is None
    assert found.closedness == 1
    assert _largest_distance_px(found.ellipse, cut) < 0.1
    half_out = Ellipse(
        center_x_px=250, center_y_px=10, semi_major_px=170, semi_minor_px=120, theta_rad=0.0
    )
    found = extract_ellipse(_grey(_drawn(half_out)))
    assert found.ellipse is None
    assert found.reason.startswith("visible share 0.5")
    assert found.reason.endswith(" below 0.7")


def _square_of(side: int, *, value: int) -> np.ndarray:
    return np.full((side, side), value, dtype=np.uint8)


def _one_pixel() -> np.ndarray:
    picture = np.zeros((54, 80), dtype=np.uint8)
    picture[5, 7] = 255
    return picture


def _straight_line() -> np.ndarray:
    picture = np.zeros((512, 512), dtype=np.uint8)
    cv2.line(picture, (100, 120), (350, 370), 255, 3)
    return picture


def _scaled(factor: float) -> Ellipse:
    return Ellipse(
        center_x_px=256,
        center_y_px=256,
        semi_major_px=170 * factor,
        semi_minor_px=120 * factor,
        theta_rad=0.4,
    )


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (np.zeros((0, 0), dtype=np.uint8), "0 pixels of line above 180, 20 needed"),
        (_square_of(54, value=0), "0 pixels of line above 180, 20 needed"),
        (_square_of(54, value=180), "0 pixels of line above 180, 20 needed"),
        (_one_pixel(), "1 pixels of line above 180, 20 needed"),
        (_square_of(1, value=255), "1 pixels of line above 180, 20 needed"),
        (_square_of(54, value=255), "1.00 of the image above 180, more than 0.15"),
        (np.full((1, 50), 255, dtype=np.uint8), "1.00 of the image above 180, more than 0.15"),
        (
            255 * rasterise(HEAD, size_hw=(512, 512)),
            "0.24 of the image above 180, more than 0.15",
        ),
        (255 * rasterise(_scaled(0.5), size_hw=(512, 512)), "no ellipse fits the"),
        (_straight_line(), "no ellipse fits the"),
        (_grey(_drawn(_scaled(0.25))), "semi-minor axis share 0.0586 below 0.08"),
        (_grey(_drawn(HEAD, thickness_px=35)), "thickness share 0.067"),
        (_grey(0.7 * _drawn(HEAD)), "0 pixels of line above 180, 20 needed"),
    ],
)
def test_what_is_no_outline_gets_a_reason(picture, reason):
    found = extract_ellipse(picture)
    assert found.ellipse is None
    assert found.reason.startswith(reason)
    assert "\n" not in found.reason


def test_noise_alone_is_refused():
    rng = np.random.default_rng(5)
    assert extract_ellipse(rng.integers(0, 256, (512, 512), dtype=np.uint8)).ellipse is None
    for spread_px, level in ((1, 1.3), (3, 1.3), (8, 1.2)):
        texture = cv2.GaussianBlur(rng.normal(size=(512, 512)), (0, 0), spread_px)
        found = extract_ellipse(255 * (texture > level * texture.std()).astype(np.uint8))
        assert found.ellipse is None


def test_a_faint_line_needs_a_lower_threshold():
    found = extract_ellipse(_grey(0.7 * _drawn(HEAD)), ExtractorConfig(threshold=120))
    assert found.reason is None
    assert _largest_distance_px(found.ellipse, HEAD) < 0.1


def test_limits_are_those_of_the_configuration():
    picture = _grey(_drawn(HEAD))
    found = extract_ellipse(picture, ExtractorConfig(max_semi_major_share=0.3))
    assert found.reason == "semi-major axis share 0.332 above 0.3"
    found = extract_ellipse(picture, ExtractorConfig(min_semi_minor_share=0.25))
    assert found.reason == "semi-minor axis share 0.234 below 0.25"
    found = extract_ellipse(picture, ExtractorConfig(max_thickness_share=0.004))
    assert found.reason.startswith("thickness share 0.0046")
    found = extract_ellipse(picture, ExtractorConfig(max_foreground_share=0.005))
    assert found.reason == "0.01 of the image above 180, more than 0.005"


def test_the_image_alone_decides():
    rng = np.random.default_rng(3)
    picture = _drawn(HEAD)
    _disturb(picture, what="noise line", ellipse=HEAD, rng=rng)
    first = extract_ellipse(_grey(picture))
    assert extract_ellipse(_grey(picture)) == first


@pytest.mark.parametrize("picture", [np.zeros((9, 9)), np.zeros((9, 9, 3), dtype=np.uint8)])
def test_only_grey_uint8_images_are_read(picture):
    with pytest.raises(ValueError, match=r"outline must be uint8 \(H, W\)"):
        extract_ellipse(picture)


@pytest.mark.parametrize("mode", ["pad", "squash"])
def test_to_frame_and_back(mode):
    placement = place((540, 800), frame_hw=(384, 512), mode=mode)
    back = outline_to_original(outline_to_frame(HEAD, placement), placement)
    assert _largest_distance_px(back, HEAD) < 1e-9
    circle = Ellipse(
        center_x_px=99.5, center_y_px=49.5, semi_major_px=40, semi_minor_px=40, theta_rad=0.0
    )
    # Twice as wide and as high as before: the centre (100, 50) in corner units doubles too.
    doubled = outline_to_frame(circle, place((100, 200), frame_hw=(200, 400), mode="squash"))
    assert (doubled.center_x_px, doubled.center_y_px) == pytest.approx((199.5, 99.5))
    assert (doubled.semi_major_px, doubled.semi_minor_px) == pytest.approx((80, 80))


def test_draw_outline_by_hand():
    circle = Ellipse(
        center_x_px=40, center_y_px=27, semi_major_px=20, semi_minor_px=20, theta_rad=0.0
    )
    line = draw_outline(circle, size_hw=(54, 80), thickness_px=2.5)
    assert line.shape == (54, 80)
    assert line.dtype == np.float32
    # 1.25 px to each side of column 60: pixel 60 in full, three quarters of 59 and 61.
    np.testing.assert_allclose(line[27, 57:64], [0, 0, 0.75, 1, 0.75, 0, 0], atol=1e-6)
    assert line[27, 40] == 0
    assert line.sum() == pytest.approx(2.5 * 2 * np.pi * 20, rel=0.01)
    thin = draw_outline(circle, size_hw=(54, 80), thickness_px=0.5)
    assert thin.max() == pytest.approx(0.5)
    assert thin.sum() == pytest.approx(0.5 * 2 * np.pi * 20, rel=0.01)


def test_draw_outline_is_what_the_annotation_reader_reads():
    ellipse = Ellipse(
        center_x_px=38, center_y_px=26, semi_major_px=22, semi_minor_px=17, theta_rad=0.5
    )
    line = draw_outline(ellipse, size_hw=(54, 80), thickness_px=2.5)
    read = parse_annotation((line > 0.5).astype(np.uint8), name="drawn")
    assert read.kind == "outline"
    assert _largest_distance_px(read.ellipse, ellipse) < 0.2


def test_draw_outline_outside_and_refusals():
    away = Ellipse(
        center_x_px=500, center_y_px=27, semi_major_px=20, semi_minor_px=15, theta_rad=0.0
    )
    assert not draw_outline(away, size_hw=(54, 80), thickness_px=2.5).any()
    assert draw_outline(away, size_hw=(0, 80), thickness_px=2.5).shape == (0, 80)
    for thickness_px in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="thickness_px must be positive"):
            draw_outline(away, size_hw=(54, 80), thickness_px=thickness_px)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": 255}, "extractor.threshold=255"),
        ({"threshold": -1}, "extractor.threshold=-1"),
        ({"min_closedness": 0.0}, "extractor.min_closedness=0.0"),
        ({"min_closedness": 1.1}, "at most 1"),
        ({"max_residual_share": float("nan")}, "extractor.max_residual_share=nan"),
        ({"max_semi_major_share": 2.5}, "at most 2"),
        ({"min_semi_minor_share": 0.7}, "use less than max_semi_major_share=0.6"),
    ],
)
def test_configuration_is_checked(change, said):
    with pytest.raises(ValueError, match=said):
        ExtractorConfig(**change)


def test_outlines_need_no_torch():
    code = (
        "import sys, datamodules.outline, datamodules.prompts_text\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_outlines_read_as_the_annotation_reader_reads_them(real_hc18_root):
    compared = 0
    for sample in read_hc18(real_hc18_root)[::7]:
        annotation = read_annotation(sample.annotation_path)
        if annotation.kind != "outline":
            continue
        picture = cv2.imread(str(sample.annotation_path), cv2.IMREAD_GRAYSCALE)
        found = extract_ellipse(picture)
        assert found.reason is None, sample.sample_id
        # The reader weighs the line's pixels, the extractor its length.
        assert _largest_distance_px(found.ellipse, annotation.ellipse) < 0.5, sample.sample_id
        assert found.closedness > 0.99
        assert found.thickness_px == pytest.approx(2.3, abs=0.5)
        compared += 1
        if compared == 20:
            break
    assert compared == 20
