"""Draw one phantom: an ultrasound-like image of a fetal head. Pure, no learned part.

Amplitudes are relative: 1.0 is a bright reflector before gain. All lengths scale with the image's
width, so that small images show the same scene.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from datamodules.ellipse import Ellipse


@dataclass(frozen=True, kw_only=True)
class Beam:
    """Polar coordinates of a convex probe above the image.

    Attributes:
        radius: float32 (H, W), distance from the probe's centre of curvature, pixels.
        angle: float32 (H, W), from straight down, radians.
        inside: float32 (H, W) in [0, 1], the sector.
        range_px: first and last radius seen.
        half_angle_rad: the sector's half opening.
    """

    radius: np.ndarray
    angle: np.ndarray
    inside: np.ndarray
    range_px: tuple[float, float]
    half_angle_rad: float


def make_beam(rng: np.random.Generator, *, size_hw: tuple[int, int], zoomed: bool) -> Beam:
    """Place the probe; zoomed images show only a part of the sector, without its edges."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width].astype(np.float32)
    if zoomed:
        apex_y, half_angle = -height * rng.uniform(1.0, 2.0), 0.7
        first = -apex_y - 1.0
        last = math.hypot(height - apex_y, width)
    else:
        apex_y, half_angle = -height * rng.uniform(0.15, 0.45), rng.uniform(0.62, 0.85)
        first = -apex_y + height * rng.uniform(-0.02, 0.06)
        last = -apex_y + height * rng.uniform(0.95, 1.15)
    apex_x = width * rng.uniform(0.42, 0.58)
    radius, angle = np.hypot(x - apex_x, y - apex_y), np.arctan2(x - apex_x, y - apex_y)
    inside = (radius > first) & (radius < last) & (np.abs(angle) < half_angle)
    return Beam(
        radius=radius,
        angle=angle,
        inside=inside.astype(np.float32),
        range_px=(first, last),
        half_angle_rad=half_angle,
    )


def draw_head(
    rng: np.random.Generator, *, ellipse: Ellipse, size_hw: tuple[int, int], early: bool
) -> np.ndarray:
    """Return the image of a head whose outer skull is the ellipse.

    Args:
        rng: the only source of randomness.
        ellipse: in pixels; may leave the image.
        size_hw: rows and columns.
        early: first trimester: more fluid around the head, plexuses that fill it, thin skull.

    Returns:
        uint8 (H, W).
    """
    # A close-up for the small heads; the others half and half.
    beam = make_beam(rng, size_hw=size_hw, zoomed=bool(rng.random() < (0.75 if early else 0.4)))
    along, across = _head_axes(ellipse, size_hw=size_hw)
    level = np.hypot(along, across)
    slope = np.hypot(along / ellipse.semi_major_px, across / ellipse.semi_minor_px)
    distance = (level - 1) * level / np.maximum(slope, 1e-6)
    # No skull is an exact ellipse; the annotation is.
    turn = np.arctan2(across, along)
    uneven_px = rng.uniform(0.002, 0.01) * size_hw[1]
    distance += uneven_px * (_around(rng, turn=turn, bumps=8) - 0.5)
    tissue = _surroundings(rng, beam=beam, distance=distance, early=early)
    brain = _brain(rng, along=along, across=across, early=early)
    inside_head = _step(-distance, width=0.0015 * size_hw[1])
    tissue += (brain - tissue) * inside_head
    skull, bone = _skull(rng, turn=turn, beam=beam, distance=distance, early=early)
    echo = (tissue + skull) * _transmission(bone, beam=beam, strength=rng.uniform(0.5, 2.6))
    depth = (beam.radius - beam.range_px[0]) / (beam.range_px[1] - beam.range_px[0])
    echo *= np.exp(-rng.uniform(0.0, 1.2) * depth) * beam.inside
    echo *= 0.55 + 0.45 * _field(rng, size_hw=size_hw, cells=3)
    echo *= _speckle(rng, beam=beam, size_hw=size_hw)
    return _display(rng, echo=echo)


def _head_axes(ellipse: Ellipse, *, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates along the major and the minor axis, 1 at the skull; float32 (H, W)."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float32)
    dx, dy = x - ellipse.center_x_px, y - ellipse.center_y_px
    cos, sin = math.cos(ellipse.theta_rad), math.sin(ellipse.theta_rad)
    along = (cos * dx + sin * dy) / ellipse.semi_major_px
    return along, (cos * dy - sin * dx) / ellipse.semi_minor_px


def _field(rng: np.random.Generator, *, size_hw: tuple[int, int], cells: int) -> np.ndarray:
    """Return smooth noise in [0, 1], about `cells` bumps wide; float32 (H, W)."""
    height, width = size_hw
    rows = max(2, round(cells * height / width))
    coarse = rng.random((rows + 1, cells + 1), dtype=np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _step(values: np.ndarray, *, width: float) -> np.ndarray:
    """Return a soft step at 0, from 0 to 1 over about four times the width."""
    return 1 / (1 + np.exp(-np.clip(values / max(width, 0.3), -30, 30)))


def _bump(values: np.ndarray, *, width: float) -> np.ndarray:
    return np.exp(-0.5 * (values / width) ** 2)


def _surroundings(
    rng: np.random.Generator, *, beam: Beam, distance: np.ndarray, early: bool
) -> np.ndarray:
    """Return uterine wall, placenta, fluid and neighbouring structures; float32 (H, W)."""
    size_hw, width = distance.shape, distance.shape[1]
    depth = (beam.radius - beam.range_px[0]) / (beam.range_px[1] - beam.range_px[0])
    texture = 0.6 * _field(rng, size_hw=size_hw, cells=6) + 0.4 * _field(
        rng, size_hw=size_hw, cells=25
    )
    tissue = rng.uniform(0.12, 0.34) * (0.35 + 1.3 * texture)
    # Abdominal wall and uterus: layers that follow the probe, wavy.
    wave = depth + 0.06 * _field(rng, size_hw=size_hw, cells=3)
    layers = np.sin(2 * np.pi * wave * rng.uniform(14, 26) + rng.uniform(0, 6)) * 0.5 + 0.5
    near = np.clip(1 - wave / rng.uniform(0.08, 0.26), 0, 1)
    tissue += near * (0.25 * layers + 0.08)
    # Fluid touches the head on some sides only.
    reach = (0.18 if early else 0.06) * width
    edge = _field(rng, size_hw=size_hw, cells=4) - rng.uniform(0.35, 0.6 if early else 0.75)
    near_head = np.exp(-np.maximum(distance, 0) / reach)
    closeness = (0.5 if early else 0.3) * near_head - 0.2
    fluid = _step((edge + closeness) * 45, width=1.0)
    wall = fluid * (1 - fluid) * rng.uniform(0.0, 0.8)
    tissue = tissue * (1 - fluid) + 0.012 * fluid + wall
    # Membranes and other walls: bright arcs that are not the skull.
    for _ in range(int(rng.integers(1, 5))):
        other = _random_ellipse(rng, size_hw=size_hw)
        gap = _field(rng, size_hw=size_hw, cells=5) > rng.uniform(0.35, 0.7)
        arc = _bump(_distance(other, size_hw=size_hw), width=rng.uniform(0.002, 0.007) * width)
        tissue += rng.uniform(0.15, 0.7) * arc * gap
    return tissue.astype(np.float32)


def _random_ellipse(rng: np.random.Generator, *, size_hw: tuple[int, int]) -> Ellipse:
    height, width = size_hw
    major = width * rng.uniform(0.08, 0.5)
    return Ellipse(
        center_x_px=width * rng.uniform(-0.1, 1.1),
        center_y_px=height * rng.uniform(-0.1, 1.1),
        semi_major_px=major,
        semi_minor_px=major * rng.uniform(0.3, 1.0),
        theta_rad=rng.uniform(0, 3.14),
    )


def _distance(ellipse: Ellipse, *, size_hw: tuple[int, int]) -> np.ndarray:
    along, across = _head_axes(ellipse, size_hw=size_hw)
    return (np.hypot(along, across) - 1) * ellipse.semi_minor_px


def _brain(
    rng: np.random.Generator, *, along: np.ndarray, across: np.ndarray, early: bool
) -> np.ndarray:
    """Return the inside of the head: dark, with midline, CSP, ventricles and plexus (H, W)."""
    size_hw = along.shape
    texture = 0.5 * _field(rng, size_hw=size_hw, cells=9) + 0.5 * _field(
        rng, size_hw=size_hw, cells=40
    )
    brain = rng.uniform(0.035, 0.13) * (0.3 + 1.4 * texture)
    side, shift = (1.0 if rng.random() < 0.5 else -1.0), rng.uniform(-0.06, 0.06)
    bend = shift + 0.12 * (_field(rng, size_hw=size_hw, cells=3) - 0.5)
    broken = _step((_field(rng, size_hw=size_hw, cells=22) - rng.uniform(0.4, 0.75)) * 12, width=1)
    reach = _step((rng.uniform(0.5, 0.9) - np.abs(along)) * 12, width=1)
    brain += (
        rng.uniform(0.1, 0.5)
        * _bump(across - bend, width=rng.uniform(0.01, 0.025))
        * broken
        * reach
    )
    # Cavum septi pellucidi: two short walls with fluid between, in front.
    if not early and rng.random() < 0.75:
        box = _step((0.11 - np.abs(along - side * 0.42)) * 60, width=1)
        inner = box * _step((0.05 - np.abs(across - bend)) * 80, width=1)
        brain = brain * (1 - 0.85 * inner)
        brain += 0.4 * box * _bump(np.abs(across - bend) - 0.06, width=0.012)
    # Lateral ventricles with their choroid plexus; the one near the probe is often hidden.
    for hemisphere in (-1.0, 1.0):
        if not early and rng.random() < 0.35:
            continue
        x0, y0 = -side * rng.uniform(0.05, 0.4), hemisphere * rng.uniform(0.3, 0.45) + shift
        long, short = (0.5, 0.3) if early else (rng.uniform(0.2, 0.4), rng.uniform(0.07, 0.16))
        radius = np.hypot((along - x0) / long, (across - y0 - 0.2 * (along - x0)) / short)
        ventricle = _step((1 - radius) * 10, width=1)
        brain = brain * (1 - 0.8 * ventricle)
        plexus = np.hypot((along - x0) / (0.7 * long), (across - y0) / (0.62 * short))
        brain += rng.uniform(0.12, 0.4) * _step((1 - plexus) * 8, width=1) * (0.5 + texture)
    # Sulci and vessels: short bright strokes along the beam's cross direction.
    strokes = _field(rng, size_hw=size_hw, cells=30) * _field(rng, size_hw=size_hw, cells=12)
    brain += rng.uniform(0.1, 0.5) * np.clip(strokes - 0.5, 0, 1)
    return brain.astype(np.float32)


def _skull(
    rng: np.random.Generator, *, turn: np.ndarray, beam: Beam, distance: np.ndarray, early: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the skull's echo, strong where the beam meets it squarely, and its bone (H, W)."""
    width = distance.shape[1]
    gradient_y, gradient_x = np.gradient(distance)
    norm = np.maximum(np.hypot(gradient_x, gradient_y), 1e-6)
    facing = np.sin(beam.angle) * gradient_x / norm + np.cos(beam.angle) * gradient_y / norm
    around = _around(rng, turn=turn, bumps=9)
    thickness = width * rng.uniform(0.004, 0.009 if early else 0.012) * (0.6 + 0.9 * around)
    # The far wall looks thicker.
    thickness = thickness * (1 + 0.5 * np.clip(facing, 0, 1))
    gaps = _step((_around(rng, turn=turn, bumps=14) - rng.uniform(0.1, 0.4)) * 14, width=1)
    strength = np.abs(facing) ** rng.uniform(1.0, 3.0)
    strength = (rng.uniform(0.04, 0.3) + strength) * (0.25 + 0.75 * gaps) * (0.5 + 0.7 * around)
    line = _bump(distance + thickness, width=thickness * 0.85)
    halo = _bump(distance + thickness, width=thickness * 2.5)
    echo = rng.uniform(0.8, 2.2) * strength * (line + 0.15 * halo)
    # Reverberation under the near wall.
    haze = np.exp(np.minimum(distance, 0) / (0.08 * width)) * (distance < 0) * (facing < 0)
    return echo + 0.09 * rng.random() * haze, line * (0.3 + 0.7 * gaps)


def _around(rng: np.random.Generator, *, turn: np.ndarray, bumps: int) -> np.ndarray:
    """Return smooth periodic noise in [0, 1] of the angle, float32 (H, W)."""
    knots = rng.random(bumps)
    position = np.linspace(-np.pi, np.pi, bumps + 1)
    fine = np.linspace(-np.pi, np.pi, 721)
    values = np.interp(fine, position, np.append(knots, knots[0]))
    return np.interp(turn, fine, values).astype(np.float32)


def _to_polar(beam: Beam, *, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps for cv2.remap from a polar grid (angle in columns) to the image."""
    first, last = beam.range_px
    columns = (beam.angle / beam.half_angle_rad + 1) / 2 * (shape[1] - 1)
    rows = (beam.radius - first) / (last - first) * (shape[0] - 1)
    return columns.astype(np.float32), rows.astype(np.float32)


def _transmission(bone: np.ndarray, *, beam: Beam, strength: float) -> np.ndarray:
    """Return what bone above each pixel lets through, in (0, 1]: the acoustic shadow."""
    height, width = bone.shape
    rays, steps = max(width // 4, 16), max(height // 2, 16)
    first, last = beam.range_px
    radius = np.linspace(first, last, steps)[:, None]
    angle = np.linspace(-beam.half_angle_rad, beam.half_angle_rad, rays)
    # The apex from any pixel: x = apex_x + r sin(angle), y = apex_y + r cos(angle).
    apex_x = -float(beam.radius[0, 0] * np.sin(beam.angle[0, 0]))
    apex_y = -float(beam.radius[0, 0] * np.cos(beam.angle[0, 0]))
    map_x = (apex_x + radius * np.sin(angle)).astype(np.float32)
    map_y = (apex_y + radius * np.cos(angle)).astype(np.float32)
    polar = cv2.remap(bone.astype(np.float32), map_x, map_y, cv2.INTER_LINEAR)
    passed = np.exp(-strength * np.cumsum(polar, axis=0) * (last - first) / steps / (0.06 * width))
    passed = cv2.GaussianBlur(passed.astype(np.float32), (0, 0), sigmaX=2.0, sigmaY=0.7)
    columns, rows = _to_polar(beam, shape=passed.shape)
    return cv2.remap(passed, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _speckle(rng: np.random.Generator, *, beam: Beam, size_hw: tuple[int, int]) -> np.ndarray:
    """Return speckle of mean about 1: wider than deep, and wider with depth; float32 (H, W)."""
    arc_px = 2 * beam.half_angle_rad * beam.range_px[1]
    depth_px = beam.range_px[1] - beam.range_px[0]
    shape = (max(round(depth_px * 0.9), 16), max(round(arc_px * 0.7), 16))
    sigma = rng.uniform(0.9, 1.9) * size_hw[1] / 800
    parts = []
    for _ in range(2):
        noise = rng.standard_normal(shape, dtype=np.float32)
        noise = cv2.GaussianBlur(
            noise, (0, 0), sigmaX=max(1.9 * sigma, 0.5), sigmaY=max(sigma, 0.4)
        )
        parts.append(noise / noise.std())
    # Scanners smooth and compound: part of the Rayleigh contrast is gone.
    amplitude = (np.hypot(*parts) / math.sqrt(math.pi / 2)) ** rng.uniform(0.45, 0.85)
    columns, rows = _to_polar(beam, shape=shape)
    return cv2.remap(amplitude, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _display(rng: np.random.Generator, *, echo: np.ndarray) -> np.ndarray:
    """Compress, set the gain, and add what scanners draw over the image; uint8 (H, W)."""
    height, width = echo.shape
    picture = np.maximum(echo, 0) ** rng.uniform(0.6, 0.85)
    target = float(np.clip(rng.normal(0.17, 0.045), 0.07, 0.3))
    for _ in range(3):
        picture *= target / max(float(np.minimum(picture, 1).mean()), 1e-6)
    picture = np.minimum(picture, 1) * 255
    # Boxes that hide text, and the grey scale on the left.
    box_h, box_w = round(height * rng.uniform(0.06, 0.2)), round(width * rng.uniform(0.15, 0.28))
    picture[height - box_h :, width - box_w :] = 0
    if rng.random() < 0.4:
        picture[: round(height * rng.uniform(0.1, 0.2)), width - round(width * 0.06) :] = 0
    top, bottom = round(height * 0.04), round(height * 0.36)
    picture[top:bottom, : max(1, width // 100)] = 0
    picture[top:bottom, : max(1, width // 270)] = np.linspace(255, 0, bottom - top)[:, None]
    return np.round(picture).astype(np.uint8)
