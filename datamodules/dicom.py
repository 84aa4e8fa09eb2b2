"""DICOM files as grey images with their pixel size; pydicom reads them. No other tag is passed on.

pydicom's own words may quote a file's values, which may be a patient's: its warnings are silenced,
and the errors here name the file and the fault alone.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, MutableSequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from datamodules.dicom_header import holds_more_pixels, pixel_size_of
from datamodules.errors import InputError
from datamodules.grey import AnyImage, grey_of

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom")
_PREAMBLE = 128
_MARK = b"DICM"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREYS = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(data: bytes) -> bool:
    """Whether bytes are a DICOM file's, told by the mark behind its preamble."""
    return data[_PREAMBLE : _PREAMBLE + len(_MARK)] == _MARK


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(_PREAMBLE + len(_MARK)))
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class DicomFile:
    """A DICOM file with an image in it.

    Attributes:
        name: For messages.
        dataset: As pydicom reads it.
        n_frames: At least 1.
    """

    name: str
    dataset: "Dataset"
    n_frames: int

    def frames(self, only: int | None = None) -> Iterator[AnyImage]:
        """Decode its frames one by one, or one of them, each with the file's pixel size.

        Grey values of more than 8 bit, signed or rescaled ones are shown by the file's window, else
        scaled from the frame's own range to 0..255; 8 bit without a window stay as they are.
        MONOCHROME1 is turned round, colour converted. Where regions of ultrasound are given, what
        lies outside of all of them becomes black: there scanners write names and dates.

        Args:
            only: Number of the one frame that is wanted, from 1.

        Raises:
            InputError: No installed codec decodes them, they are damaged, there is no such one, or
                regions of ultrasound are given and none is usable.
        """
        import pydicom.pixels

        if only is not None and not 1 <= only <= self.n_frames:
            raise InputError(f"{self.name}: has no frame {only}, but {self.n_frames}")
        wanted = range(self.n_frames) if only is None else [only - 1]

        require_decodable(self)
        with _reading(self.name):
            mm, because = pixel_size_of(self.dataset)
            frames = pydicom.pixels.iter_pixels(self.dataset, indices=wanted)
        for _ in wanted:
            with _reading(self.name):
                image = _shown(next(frames), self.dataset)
                inside = _inside_regions(self.dataset, image.grey.shape)
            if not inside.any():
                raise InputError(
                    f"{self.name}: none of its ultrasound regions has usable corners, so what may "
                    "be names outside of them would show; save its images as PNG without them"
                )
            grey = np.where(inside, image.grey, np.uint8(0))
            yield replace(image, grey=grey, pixel_size_mm=mm, no_size_because=because)


def open_dicom(data: bytes, *, name: str) -> DicomFile:
    """Read a DICOM file's bytes; its pixels are not decoded yet.

    Args:
        data: Of the file.
        name: For messages.

    Raises:
        InputError: pydicom is not installed, the bytes are damaged, or hold no image that is read.
    """
    dataset = _dataset(io.BytesIO(data), name=name, is_dicom_data=is_dicom(data))
    with _reading(name):
        n_frames = int(dataset.get("NumberOfFrames") or 1)
        kind = str(dataset.get("PhotometricInterpretation", ""))
        has_pixels = "PixelData" in dataset
        has_more = has_pixels and holds_more_pixels(dataset)
    if not has_pixels or n_frames < 1:
        raise InputError(f"{name}: a DICOM file without an image, or cut short; leave it out")
    if kind not in (*_GREYS, *_COLOURS, "PALETTE COLOR"):
        raise InputError(
            f"{name}: its colours are none of {', '.join((*_GREYS, *_COLOURS))} and PALETTE COLOR; "
            "save its images as PNG"
        )
    if has_more:
        raise InputError(
            f"{name}: holds more pixels than its rows, columns and number of frames speak of, so "
            "that some would be lost; export it again, or save its images as PNG"
        )
    return DicomFile(name=name, dataset=dataset, n_frames=n_frames)


@dataclass(frozen=True, kw_only=True)
class DicomHeader:
    """What a file says before its pixels.

    Attributes:
        n_frames: At least 1.
        pixel_size_mm: None where none is stated, or none that is one length.
        no_size_because: Why what is stated is none; "" where nothing is.
    """

    n_frames: int
    pixel_size_mm: float | None
    no_size_because: str


def read_header(path: Path) -> DicomHeader:
    """Read a file's number of frames and pixel size, not its pixels.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            mark = is_dicom(file.read(_PREAMBLE + len(_MARK)))
            file.seek(0)
            dataset = _dataset(file, name=str(path), is_dicom_data=mark, has_pixels=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    with _reading(str(path)):
        mm, because = pixel_size_of(dataset)
        n_frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    return DicomHeader(n_frames=n_frames, pixel_size_mm=mm, no_size_because=because)


def frame_name(stem: str, number: int, *, n_frames: int) -> str:
    """Name of a frame of several, from 1: `clip_frame07` of 12, with the last one's digits."""
    return f"{stem}_frame{number:0{len(str(n_frames))}}"


def _dataset(
    file: BinaryIO, *, name: str, is_dicom_data: bool, has_pixels: bool = True
) -> "Dataset":
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            f"{name}: DICOM needs pydicom, which is not installed (the extra `dicom`); "
            "pip install 'pydicom>=3'"
        ) from error
    if not is_dicom_data:
        raise InputError(f"{name}: not a DICOM file (its preamble is missing); export it again")
    with _reading(name):
        return pydicom.dcmread(file, stop_before_pixels=not has_pixels)


def require_decodable(file: DicomFile) -> None:
    """Raise InputError, with what to install, unless an installed codec decodes the pixels."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID_dictionary

    with _reading(file.name):
        syntax = file.dataset.file_meta.get("TransferSyntaxUID")
        # Nothing of a damaged file's is quoted: it may be another tag's value.
        name = f" as {syntax.name}" if syntax in UID_dictionary else ""
        try:
            decoder = get_decoder(syntax)
        except (NotImplementedError, AttributeError):
            decoder = None
    if decoder is None:
        raise InputError(
            f"{file.name}: its pixels are compressed{name}, which pydicom does not decode; save "
            "its images as PNG"
        )
    if not decoder.is_available:
        package = "pylibjpeg-openjpeg" if "JPEG 2000" in name else "pylibjpeg-libjpeg"
        raise InputError(
            f"{file.name}: its pixels are compressed{name}, which no installed codec decodes; "
            f"pip install pylibjpeg {package}"
        )


def one_dicom_image(data: bytes, *, name: str, frame: int | None = None) -> AnyImage:
    """Read a frame of a DICOM file by its number from 1, or the image of one that holds one.

    Raises:
        InputError: See `open_dicom` and `DicomFile.frames`; or it holds several, and none is named.
    """
    file = open_dicom(data, name=name)
    if frame is None and file.n_frames > 1:
        raise InputError(
            f"{name}: holds {file.n_frames} frames, and one image is wanted; save those that are "
            "meant as files of their own"
        )
    return next(file.frames(only=frame))


def _inside_regions(dataset: "Dataset", size_hw: tuple[int, ...]) -> np.ndarray:
    """Bool (H, W): what lies in an ultrasound region; everything where none is given."""
    regions = dataset.get("SequenceOfUltrasoundRegions")
    if not regions:
        return np.ones(size_hw, dtype=bool)
    corners = ("MinX0", "MinY0", "MaxX1", "MaxY1")
    inside = np.zeros(size_hw, dtype=bool)
    for region in regions:
        box = [region.get(f"RegionLocation{corner}") for corner in corners]
        x0, y0, x1, y1 = (-1 if value is None else value for value in box)
        if 0 <= x0 < x1 and 0 <= y0 < y1:
            inside[y0 : y1 + 1, x0 : x1 + 1] = True
    return inside


def _shown(pixels: np.ndarray, dataset: "Dataset") -> AnyImage:
    """One frame as it is meant to be looked at."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi

    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        rgb = apply_color_lut(pixels, dataset)
        # Palettes of 16 bit use all of them: 65535 is white.
        return grey_of(rgb if rgb.dtype == np.uint8 else (rgb >> 8).astype(np.uint8), is_rgb=True)
    if kind in _COLOURS:
        return grey_of(pixels, is_rgb=True)
    values, window = apply_modality_lut(pixels, dataset), _window(dataset)
    if dataset.get("VOILUTSequence"):
        bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        looked_up = apply_voi(np.asarray(values).astype(np.int32), dataset).astype(np.float64)
        image = AnyImage(grey=np.round(looked_up * (255 / (2**bits - 1))).astype(np.uint8))
    elif window is not None:
        function = str(dataset.get("VOILUTFunction") or "LINEAR")
        grey = windowed(values, centre=window[0], width=window[1], function=function)
        changed = pixels.dtype != np.uint8 or (grey != pixels).any()
        image = AnyImage(grey=grey, window=window if changed else None)
    else:
        whole = np.asarray(values)
        if whole.dtype.kind == "f" and pixels.dtype == np.uint8 and (whole == pixels).all():
            whole = pixels  # Rescaled by a slope of 1.
        image = grey_of(whole)
    return replace(image, grey=255 - image.grey) if kind == "MONOCHROME1" else image


def windowed(values: np.ndarray, *, centre: float, width: float, function: str) -> np.ndarray:
    """Map values to 0..255 by a window.

    Args:
        values: (H, W), any numbers.
        centre: Of the window.
        width: Of the window, at least 1 for LINEAR, above 0 for the others.
        function: LINEAR, LINEAR_EXACT or SIGMOID.

    Returns:
        uint8 (H, W).

    Raises:
        ValueError: No such function, or no such width.

    Source:
        DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3; equal to pydicom's `apply_windowing`.
    """
    x = values.astype(np.float64)
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"no function {function!r} of a window")
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise ValueError(f"a window of width {width}")
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (x - centre) / width))
    elif function == "LINEAR_EXACT":
        share = (x - centre) / width + 0.5
    elif width == 1:
        share = (x > centre - 0.5).astype(np.float64)
    else:
        share = (x - (centre - 0.5)) / (width - 1) + 0.5
    return np.round(255 * share.clip(0, 1)).astype(np.uint8)


def _window(dataset: "Dataset") -> tuple[float, float] | None:
    """Centre and width of the first window; None without one, or with one that shows nothing."""
    pair = []
    for key in ("WindowCenter", "WindowWidth"):
        value = dataset.get(key)
        if value is None or value == "":
            return None
        pair.append(float(value[0] if isinstance(value, MutableSequence) else value))
    # Some scanners write a width of 0.
    return (pair[0], pair[1]) if pair[1] >= 1 else None


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Quietly; whatever pydicom raises on a damaged file becomes one line."""
    with _quiet():
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{name}: damaged or cut short DICOM ({type(error).__name__}); copy the file "
                "again, or save its images as PNG"
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without pydicom's warnings and log lines, which may quote values of the file."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
