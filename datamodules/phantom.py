"""A procedural fetal-head data set in HC18's own layout, so that everything runs with no download.

The scenes are invented: what is measured on them says that the code works, nothing about patients.
"""

import json
import math
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.ellipse import Ellipse, contour_distance_px, perimeter_px, rasterise
from datamodules.errors import InputError
from datamodules.phantom_image import draw_head
from datamodules.samples import FILLED_BIAS_PX, HC18_CSV, HC18_FOLDER, PHANTOM_MARKER
from datamodules.synthetic import write_png

OUTLINE_HALF_THICKNESS_PX = 1.2

# Head circumference in mm: range and, for the second trimester, HC18's peak around 20 weeks.
_HC_MM = {1: (60.0, 97.0), 2: (101.0, 256.0), 3: (262.0, 335.0)}
_SECOND_PEAK_MM, _SECOND_STD_MM = 178.0, 25.0
# Perimeter of the head over the width of the image; early heads are smaller on the screen too.
_PERIMETER_SHARE = {1: (0.9, 1.5), 2: (1.35, 2.05), 3: (1.45, 2.05)}
_TWO_FRAMES_SHARE = 0.2
# In "mixed" sets every eighth exam is passed on with filled masks.
_FILLED_EVERY = 8
_TEST_EXAM_OFFSET = 1_000_000


@dataclass(frozen=True, kw_only=True)
class _Frame:
    stem: str
    image: np.ndarray
    annotation: np.ndarray
    pixel_size_mm: float
    hc_mm: float


def write_phantom(
    root: Path,
    *,
    n_exams: int,
    seed: int,
    size_hw: tuple[int, int] = (540, 800),
    outlines: Literal["outline", "filled", "mixed"] = "mixed",
    test_images: int = 0,
) -> None:
    """Write a phantom data set in HC18's layout and file formats.

    About one exam in five has two frames. As in HC18, file order follows age; a sixth of the exams
    at least are first and a sixth third trimester.

    Args:
        root: folder to make; appears only when it is complete.
        n_exams: training exams, 1 or more.
        seed: with the exam's number the only source of randomness.
        size_hw: rows and columns of all images.
        outlines: how annotations are drawn; "mixed" has filled masks in every eighth exam, as in
            redistributions of HC18.
        test_images: number of test images, without annotations; 0 leaves the test part out.

    Raises:
        InputError: the folder exists and is not empty, or cannot be written.
        ValueError: no exams, or images smaller than 32 px.
    """
    if n_exams < 1 or test_images < 0 or min(size_hw) < 32:
        raise ValueError(
            f"a phantom set needs n_exams >= 1, test_images >= 0 and a size of at least 32x32, "
            f"got {n_exams}, {test_images} and {size_hw}"
        )
    if outlines not in ("outline", "filled", "mixed"):
        raise ValueError(f"outlines must be 'outline', 'filled' or 'mixed', got {outlines!r}")
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: exists and is not empty; give a new folder or remove it")
    partial = None
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        # mkdtemp makes it private; the data set is as readable as any folder of the user's.
        partial.chmod(0o755)
        _write_part(
            partial, part="training", n_exams=n_exams, seed=seed, size_hw=size_hw, outlines=outlines
        )
        if test_images > 0:
            _write_part(
                partial,
                part="test",
                n_exams=test_images,
                seed=seed,
                size_hw=size_hw,
                outlines=outlines,
            )
        marker = {"procedural": True, "n_exams": n_exams, "seed": seed}
        (partial / PHANTOM_MARKER).write_text(json.dumps(marker) + "\n")
        partial.replace(root)
    except OSError as error:
        raise InputError(f"{root}: cannot be written ({error.strerror or error})") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _write_part(
    root: Path,
    *,
    part: Literal["training", "test"],
    n_exams: int,
    seed: int,
    size_hw: tuple[int, int],
    outlines: str,
) -> None:
    folder = root / HC18_FOLDER[part]
    folder.mkdir()
    is_test = part == "test"
    rows = ["filename,pixel size(mm)" + ("" if is_test else ",head circumference (mm)")]

    def write_exam(exam: int) -> list[str]:
        is_filled = outlines == "filled" or (
            outlines == "mixed" and exam % _FILLED_EVERY == _FILLED_EVERY - 1
        )
        frames = _exam_frames(
            exam, seed=seed, n_exams=n_exams, size_hw=size_hw, is_test=is_test, is_filled=is_filled
        )
        return [_write_frame(folder, frame=frame, is_test=is_test) for frame in frames]

    # Each exam has its own generator, so that the order of the threads does not matter.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for exam_rows in pool.map(write_exam, range(n_exams)):
            rows += exam_rows
    # HC18's own file has CRLF.
    (root / HC18_CSV[part]).write_bytes("".join(f"{row}\r\n" for row in rows).encode())


def _write_frame(folder: Path, *, frame: _Frame, is_test: bool) -> str:
    """Write the frame's files and return its row of the CSV."""
    write_png(folder / f"{frame.stem}.png", frame.image)
    row = f"{frame.stem}.png,{frame.pixel_size_mm:.9f}"
    if is_test:
        return row
    write_png(folder / f"{frame.stem}_Annotation.png", frame.annotation)
    return f"{row},{frame.hc_mm:.2f}"


def _exam_frames(
    exam: int,
    *,
    seed: int,
    n_exams: int,
    size_hw: tuple[int, int],
    is_test: bool,
    is_filled: bool,
) -> list[_Frame]:
    rng = np.random.default_rng([seed, exam + (_TEST_EXAM_OFFSET if is_test else 0)])
    trimester = _trimester_of(exam, n_exams=n_exams)
    hc_mm = _draw_hc_mm(rng, trimester=trimester)
    ellipse = _draw_ellipse(rng, trimester=trimester, size_hw=size_hw)
    count = 2 if not is_test and rng.random() < _TWO_FRAMES_SHARE else 1
    digits = max(3, len(str(n_exams - 1)))
    frames = []
    for number in range(1, count + 1):
        if number > 1:
            ellipse, hc_mm = _next_frame(rng, ellipse=ellipse), hc_mm * rng.uniform(0.98, 1.02)
            low, high = _HC_MM[trimester]
            hc_mm = min(max(hc_mm, low), high)
        pixel_size_mm = round(hc_mm / perimeter_px(ellipse), 9)
        frames.append(
            _Frame(
                stem=f"{exam:0{digits}d}_{'' if number == 1 else number}HC",
                image=draw_head(rng, ellipse=ellipse, size_hw=size_hw, early=trimester == 1),
                annotation=draw_annotation(ellipse, size_hw=size_hw, is_filled=is_filled),
                pixel_size_mm=pixel_size_mm,
                hc_mm=perimeter_px(ellipse) * pixel_size_mm,
            )
        )
    return frames


def _trimester_of(exam: int, *, n_exams: int) -> int:
    """Return 1, 2 or 3 by the exam's rank: a sixth each, rounded up, are first and third."""
    ends = math.ceil(n_exams / 6)
    if n_exams >= 2 and exam >= n_exams - ends:
        return 3
    return 1 if n_exams >= 3 and exam < ends else 2


def _draw_hc_mm(rng: np.random.Generator, *, trimester: int) -> float:
    low, high = _HC_MM[trimester]
    if trimester == 2:
        return float(np.clip(rng.normal(_SECOND_PEAK_MM, _SECOND_STD_MM), low, high))
    return float(rng.uniform(low, high))


def _draw_ellipse(rng: np.random.Generator, *, trimester: int, size_hw: tuple[int, int]) -> Ellipse:
    """Draw a head that lies in the image by at least 1 % of its width."""
    height, width = size_hw
    share, ratio = rng.uniform(*_PERIMETER_SHARE[trimester]), rng.normal(0.79, 0.05)
    unit = Ellipse(
        center_x_px=0.0,
        center_y_px=0.0,
        semi_major_px=1.0,
        semi_minor_px=float(np.clip(ratio, 0.65, 0.95)),
        # Sonographers hold the midline level, mostly.
        theta_rad=float(rng.normal(0, 0.3) if rng.random() < 0.8 else rng.uniform(0, 3.14))
        % math.pi,
    )
    scale = share * width / perimeter_px(unit)
    cos, sin = math.cos(unit.theta_rad), math.sin(unit.theta_rad)
    reach_x = math.hypot(cos, unit.semi_minor_px * sin)
    reach_y = math.hypot(sin, unit.semi_minor_px * cos)
    room_x, room_y = (width - 1) / 2 - 0.01 * width, (height - 1) / 2 - 0.01 * width
    scale = min(scale, room_x / reach_x, room_y / reach_y)
    free_x, free_y = room_x - scale * reach_x, room_y - scale * reach_y
    spread = 0.45 if trimester == 1 else 0.35
    shift = np.clip(rng.normal(0, spread, size=2), -1, 1) * (free_x, free_y)
    return replace(
        unit,
        center_x_px=(width - 1) / 2 + float(shift[0]),
        center_y_px=(height - 1) / 2 + float(shift[1]),
        semi_major_px=scale,
        semi_minor_px=scale * unit.semi_minor_px,
    )


def _next_frame(rng: np.random.Generator, *, ellipse: Ellipse) -> Ellipse:
    """Move the probe a little: smaller by a few percent, hence still inside, and turned."""
    scale = rng.uniform(0.9, 0.97)
    limit = (1 - scale) * ellipse.semi_minor_px / 2
    return Ellipse(
        center_x_px=ellipse.center_x_px + rng.uniform(-limit, limit),
        center_y_px=ellipse.center_y_px + rng.uniform(-limit, limit),
        semi_major_px=ellipse.semi_major_px * scale,
        semi_minor_px=ellipse.semi_minor_px * scale,
        theta_rad=(ellipse.theta_rad + rng.normal(0, 0.03)) % math.pi,
    )


def draw_annotation(ellipse: Ellipse, *, size_hw: tuple[int, int], is_filled: bool) -> np.ndarray:
    """Draw the annotation as HC18 has it: a thin outline, or a redistribution's filled mask.

    Returns:
        uint8 in {0, 255}: (H, W) with a line of 2.4 px on the ellipse, or (H, W, 3) filled and
        reaching `FILLED_BIAS_PX` beyond it.
    """
    if is_filled:
        grown = replace(
            ellipse,
            semi_major_px=ellipse.semi_major_px + FILLED_BIAS_PX,
            semi_minor_px=ellipse.semi_minor_px + FILLED_BIAS_PX,
        )
        return np.repeat(255 * rasterise(grown, size_hw=size_hw)[..., None], 3, axis=2)
    points = np.argwhere(_band(ellipse, size_hw=size_hw))
    near = np.abs(contour_distance_px(ellipse, points[:, ::-1])) <= OUTLINE_HALF_THICKNESS_PX
    outline = np.zeros(size_hw, dtype=np.uint8)
    outline[tuple(points[near].T)] = 255
    return outline


def _band(ellipse: Ellipse, *, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the pixels within a few px of the contour: only they need an exact distance."""
    outer, inner = (
        rasterise(
            replace(
                ellipse,
                semi_major_px=max(ellipse.semi_major_px + margin_px, 0.2),
                semi_minor_px=max(ellipse.semi_minor_px + margin_px, 0.1),
            ),
            size_hw=size_hw,
        )
        for margin_px in (4.0, -4.0)
    )
    return outer - inner
