"""A tiny data folder in HC18's layout."""

from pathlib import Path

import cv2
import numpy as np

# Exam, frames, HC in mm: non-square images of 54x80, all three trimesters, three exams with more
# than one frame.
EXAMS = (
    ("001", 1, 70.0),
    ("002", 2, 85.0),
    ("003", 1, 150.0),
    ("004", 3, 170.0),
    ("005", 1, 190.0),
    ("006", 2, 230.0),
    ("007", 1, 270.0),
    ("008", 1, 300.0),
)
SIZE_HW = (54, 80)


def write_hc18_folder(root: Path) -> Path:
    """Write twelve training pairs and two test images in HC18's layout; return the root."""
    rng = np.random.default_rng(18)
    training, test = root / "training_set", root / "test_set"
    training.mkdir(parents=True)
    test.mkdir()
    lines = ["filename,pixel size(mm),head circumference (mm)"]
    for exam, frames, hc_mm in EXAMS:
        for frame in range(1, frames + 1):
            stem = f"{exam}_HC" if frame == 1 else f"{exam}_{frame}HC"
            image, outline, perimeter_px = _draw_pair(rng)
            cv2.imwrite(str(training / f"{stem}.png"), image)
            cv2.imwrite(str(training / f"{stem}_Annotation.png"), outline)
            lines.append(f"{stem}.png,{hc_mm / perimeter_px:.9f},{hc_mm:.2f}")
    (root / "training_set_pixel_size_and_HC.csv").write_bytes(
        "".join(line + "\r\n" for line in lines).encode()
    )
    lines = ["filename,pixel size(mm)"]
    for number in range(2):
        cv2.imwrite(str(test / f"{number:03d}_HC.png"), _draw_pair(rng)[0])
        lines.append(f"{number:03d}_HC.png,1.234567891")
    (root / "test_set_pixel_size.csv").write_bytes(
        "".join(line + "\r\n" for line in lines).encode()
    )
    return root


def _draw_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Return image, outline (uint8, 54x80) and the outline's length in pixels."""
    height, width = SIZE_HW
    a, ratio, theta = rng.uniform(18, 24), rng.uniform(0.7, 0.85), rng.uniform(-0.5, 0.5)
    b, x0, y0 = a * ratio, rng.uniform(36, 43), rng.uniform(25, 28)
    y, x = np.mgrid[:height, :width]
    u = np.cos(theta) * (x - x0) + np.sin(theta) * (y - y0)
    v = np.cos(theta) * (y - y0) - np.sin(theta) * (x - x0)
    level = np.hypot(u / a, v / b)
    distance = (level - 1) * level / np.maximum(np.hypot(u / a**2, v / b**2), 1e-9)
    clean = np.where(level < 1, 40.0, 90.0) + 130 * np.exp(-((distance / 2) ** 2))
    image = np.clip(clean * rng.rayleigh(0.8, (height, width)), 0, 255).astype(np.uint8)
    t = np.linspace(0, 2 * np.pi, 2001)
    contour = np.stack([a * np.cos(t), b * np.sin(t)], axis=1)
    perimeter_px = float(np.linalg.norm(np.diff(contour, axis=0), axis=1).sum())
    return image, np.where(np.abs(distance) <= 1.25, 255, 0).astype(np.uint8), perimeter_px
