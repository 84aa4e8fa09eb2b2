"""Images from any source: PNG, JPEG, TIFF and BMP of 8 or 16 bit, in colour or grey."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datamodules.annotation import check_png, read_bytes
from datamodules.errors import InputError
from datamodules.samples import ANNOTATION_SUFFIX

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".wmv", ".m4v", ".webm", ".mpg", ".mpeg", ".gif")
_VOLUMES = (".dcm", ".dicom", ".nii", ".gz", ".mha", ".mhd", ".nrrd", ".npy", ".npz")
_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}


@dataclass(frozen=True, kw_only=True)
class AnyImage:
    """A decoded image.

    Attributes:
        grey: uint8 (H, W).
        scaled_from: Smallest and largest value of an image of more than 8 bit, which became 0 and
            255; None for 8 bit, whose values stay.
    """

    grey: np.ndarray
    scaled_from: tuple[int, int] | None = None


def find_images(places: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Find the images among files and folders.

    Args:
        places: Files, and folders whose images are taken in the order of their names; folders
            below them are not looked into. A file that is named twice counts once.

    Returns:
        Files by stem, in the order given, at least one; and the names of files in the folders that
        were left: of other formats, hidden, or an image's `_Annotation`.

    Raises:
        InputError: A place is missing, a folder holds no image, a file is of another format, or
            two have one stem.
    """
    found: dict[str, Path] = {}
    left: list[str] = []
    for place in places:
        if place.is_dir():
            images, others = _images_of(place)
            left.extend(others)
        elif place.is_file():
            images = [place]
            _check_suffix(place)
        else:
            raise InputError(f"{place}: no such file or folder; correct the path")
        for image in images:
            other = found.setdefault(image.stem, image)
            if other.resolve() != image.resolve():
                raise InputError(
                    f"{other} and {image} have one name, so that their masks would too; rename "
                    "one, or give them one after the other"
                )
    return found, left


def _images_of(folder: Path) -> tuple[list[Path], list[str]]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    named = [path for path in files if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    stems = {path.stem for path in named}
    images = [
        path
        for path in named
        if not path.stem.endswith(ANNOTATION_SUFFIX)
        or path.stem.removesuffix(ANNOTATION_SUFFIX) not in stems
    ]
    left = [path.name for path in files if path not in images]
    if not images:
        only = f" ({left[0]} is none)" if left else ""
        raise InputError(
            f"{folder}: no images{only}; put PNG, JPEG, TIFF or BMP files there, or give another "
            "folder"
        )
    return images, left


def _check_suffix(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return
    what = "not a PNG, JPEG, TIFF or BMP image"
    if suffix in _VIDEOS:
        what = "a video or animation, not an image"
    elif suffix in _VOLUMES:
        what = "of a format that is not read"
    raise InputError(f"{path}: {what}; save its frames as PNG")


def read_any_image(path: Path) -> AnyImage:
    """Read an image in grey.

    Colour is converted, alpha dropped, a JPEG turned as its EXIF says. More than 8 bit are scaled
    linearly from the image's own range to 0..255, because few such files use all of their bits; a
    flat one becomes 0.

    Args:
        path: PNG, JPEG, TIFF (one page) or BMP, told by its bytes.

    Raises:
        InputError: Unreadable, damaged, of another format, of several pages, a transparent TIFF,
            or not of whole numbers.
    """
    data = read_bytes(path)
    kind = next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)
    if kind is None:
        raise InputError(f"{path}: not a PNG, JPEG, TIFF or BMP image; save the image as PNG")
    if kind == "PNG":
        check_png(data, name=str(path))
    pixels = _decode(data, path=path, kind=kind)
    if pixels.ndim == 3:
        # Cut before the conversion: it cares for 3 channels alone. Grey with alpha comes as BGRA.
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_BGR2GRAY)
    if pixels.dtype == np.uint8:
        return AnyImage(grey=pixels)
    low, high = int(pixels.min()), int(pixels.max())
    scaled = (pixels.astype(np.float64) - low) * (255 / max(high - low, 1))
    return AnyImage(grey=np.round(scaled).astype(np.uint8), scaled_from=(low, high))


def _decode(data: bytes, *, path: Path, kind: str) -> np.ndarray:
    """Pixels of whole numbers, (H, W) or (H, W, 3 or 4), blue first."""
    # Only these flags turn a JPEG by its EXIF, and only the others keep a PNG's alpha apart.
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if kind == "JPEG" else cv2.IMREAD_UNCHANGED
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(0)  # Its decoders print what the error below says.
    try:
        pages = cv2.imcount(str(path)) if kind == "TIFF" else 1
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:
        raise InputError(
            f"{path}: {kind} cannot be decoded ({error.err}); save it as PNG"
        ) from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if pixels is None:
        raise InputError(f"{path}: damaged or cut short {kind}; copy or download it again")
    if pages > 1:
        raise InputError(f"{path}: holds {pages} images; save the one that is meant as PNG")
    if kind == "TIFF" and pixels.ndim == 3 and pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        # Its decoder has multiplied the colours by it.
        raise InputError(f"{path}: a TIFF that is transparent in parts; save it without alpha")
    if not np.issubdtype(pixels.dtype, np.integer):
        raise InputError(f"{path}: its pixels are {pixels.dtype}; save it with 8 or 16 bit")
    return pixels
