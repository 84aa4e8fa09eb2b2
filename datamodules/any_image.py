"""Images from any source: PNG, JPEG, TIFF, BMP, WebP, GIF and DICOM, in colour or grey."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from datamodules.annotation import check_png, read_bytes
from datamodules.dicom import SUFFIXES as DICOM_SUFFIXES
from datamodules.dicom import is_dicom, is_dicom_file, one_dicom_image, open_dicom
from datamodules.errors import InputError
from datamodules.grey import AnyImage, grey_of
from datamodules.samples import ANNOTATION_SUFFIX, require_utf8, text_of

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", *DICOM_SUFFIXES
)  # fmt: skip
FORMATS = "PNG, JPEG, TIFF, BMP, WebP, GIF or DICOM"
_VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".wmv", ".m4v", ".webm", ".mpg", ".mpeg")
_VOLUMES = (".nii", ".gz", ".mha", ".mhd", ".nrrd", ".npy", ".npz")
_DICOMDIR = "DICOMDIR"
"""The list of a medium's files, DICOM too; it holds no image."""
_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"GIF8": "GIF",
}
_BY_PILLOW = ("WebP", "GIF")


def find_images(places: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Find the images among files and folders.

    Args:
        places: Files, and folders whose images are taken in the order of their names; folders
            below them are not looked into. A file that is named twice counts once.

    Returns:
        Files by `stem_of`, in the order given, at least one; and the names of files in the folders
        that were left: of other formats, hidden, or an image's `_Annotation`. DICOM files may have
        any ending.

    Raises:
        InputError: A place is missing, a folder holds no image, a file is of another format,
            has a name that is not UTF-8, or two have one stem.
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
            require_utf8(image)
            other = found.setdefault(stem_of(image), image)
            if other.resolve() != image.resolve():
                raise InputError(
                    f"{other} and {image} have one name, so that their masks would too; rename "
                    "one, or give them one after the other"
                )
    return found, left


def stem_of(path: Path) -> str:
    """The file's name without the ending of its format; DICOM's may be numbers with dots."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _images_of(folder: Path) -> tuple[list[Path], list[str]]:
    # A link to nothing is no image that may be passed over: reading it says so.
    files = sorted(path for path in folder.iterdir() if path.is_file() or not path.exists())
    named = [path for path in files if path.name[0] != "." and _is_named_or_dicom(path)]
    stems = {stem_of(path) for path in named}
    images = [
        path
        for path in named
        if not stem_of(path).endswith(ANNOTATION_SUFFIX)
        or stem_of(path).removesuffix(ANNOTATION_SUFFIX) not in stems
    ]
    left = [text_of(path.name) for path in files if path not in images]
    if not images:
        only = f" ({left[0]} is none)" if left else ""
        raise InputError(
            f"{folder}: no images{only}; put {FORMATS} files there, or give another folder"
        )
    return images, left


def _is_named_or_dicom(path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return True
    return path.name.upper() != _DICOMDIR and is_dicom_file(path)


def _check_suffix(path: Path) -> None:
    suffix = path.suffix.lower()
    if _is_named_or_dicom(path):
        return
    what, which = f"not a {FORMATS} image", "the image"
    if suffix in _VIDEOS:
        what, which = "a video, not an image", "its frames"
    elif suffix in _VOLUMES:
        what, which = "of a format that is not read", "its frames"
    raise InputError(f"{path}: {what}; save {which} as PNG")


def read_frames(path: Path) -> Iterator[tuple[int | None, AnyImage]]:
    """Read the images of a file in grey, one by one.

    Args:
        path: As `read_any_image` reads, or DICOM of several frames.

    Yields:
        The frame's number from 1 on, None for a file of one image; and the image.

    Raises:
        InputError: See `read_any_image`.
    """
    if not is_dicom_file(path) and path.suffix.lower() not in DICOM_SUFFIXES:
        yield None, read_any_image(path)
        return
    file = open_dicom(read_bytes(path), name=str(path))
    for number, image in enumerate(file.frames(), start=1):
        yield None if file.n_frames == 1 else number, image


def read_any_image(path: Path) -> AnyImage:
    """Read an image in grey.

    Colour is converted, alpha dropped, a JPEG turned as its EXIF says. More than 8 bit are scaled
    linearly from the image's own range to 0..255, see `grey_of`; of DICOM see `DicomFile.frames`.

    Args:
        path: PNG, JPEG, TIFF (one page), BMP, WebP, GIF or DICOM (one frame), told by its bytes.

    Raises:
        InputError: Unreadable, damaged, of another format, of several pages or frames, a
            transparent TIFF, or not of whole numbers.
    """
    data = read_bytes(path)
    if is_dicom(data):
        return one_dicom_image(data, name=str(path))
    kind = next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)
    if kind is None:
        raise InputError(f"{path}: not a {FORMATS} image; save the image as PNG")
    if kind in _BY_PILLOW:
        return grey_of(_by_pillow(data, path=path, kind=kind), is_rgb=True)
    if kind == "PNG":
        check_png(data, name=str(path))
    image = grey_of(_decode(data, path=path, kind=kind))
    # Its decoder heeds that 0 is white up to 8 bit alone.
    if kind == "TIFF" and image.scaled_from is not None:
        is_white_zero = _tags_of(data).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        image = replace(image, grey=255 - image.grey) if is_white_zero else image
    return image


def _tags_of(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """The tags of a TIFF."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _refuse_misread(data: bytes, *, path: Path, dtype: np.dtype) -> None:
    """Refuse a TIFF that its decoder reads wrongly without a word."""
    tags = _tags_of(data)
    bits = max(np.atleast_1d(tags.get(TiffImagePlugin.BITSPERSAMPLE, 8)))
    samples = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    if bits > 8 and samples > 1 and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) != 1:
        raise InputError(f"{path}: a TIFF of {bits} bit in separate planes; save it as PNG")
    if bits > 8 and samples == 2:
        raise InputError(f"{path}: a grey TIFF of {bits} bit with alpha; save it without alpha")
    if samples > 1 and dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: a TIFF in colour of {dtype}; save it with 8 or 16 bit")


def _by_pillow(data: bytes, *, path: Path, kind: str) -> np.ndarray:
    """Pixels uint8 (H, W, 3), red first, of a WebP or GIF that is no animation."""
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            n_frames = getattr(image, "n_frames", 1)
            pixels = np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path}: has more pixels than are read of a {kind}; save it smaller, or as PNG"
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
        raise InputError(
            f"{path}: damaged or cut short {kind}; copy or download it again"
        ) from error
    if n_frames > 1:
        raise InputError(
            f"{path}: an animation of {n_frames} images; save those that are meant as PNG"
        )
    return pixels


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
    if kind == "TIFF":
        _refuse_misread(data, path=path, dtype=pixels.dtype)
    return pixels
