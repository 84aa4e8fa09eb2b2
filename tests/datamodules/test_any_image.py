"""Images from any source: formats, depths, channels, and one line for each that cannot be read."""

import os

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from datamodules.any_image import find_images, read_any_image
from datamodules.cohort import image_names
from datamodules.errors import InputError


@pytest.fixture
def grey():
    """uint8 (54, 80), 0 and 255 included."""
    image = np.random.default_rng(1).integers(0, 256, (54, 80), dtype=np.uint8)
    image[0, :2] = 0, 255
    return image


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tif", "a.tiff"])
def test_grey_formats_keep_every_pixel(grey, tmp_path, name):
    Image.fromarray(grey).save(tmp_path / name)
    found = read_any_image(tmp_path / name)
    np.testing.assert_array_equal(found.grey, grey)
    assert (found.grey.dtype, found.scaled_from) == (np.uint8, None)


def test_jpeg(grey, tmp_path):
    smooth = cv2.GaussianBlur(grey, (0, 0), 4)
    Image.fromarray(smooth).save(tmp_path / "a.jpeg", quality=95)
    found = read_any_image(tmp_path / "a.jpeg").grey.astype(int)
    assert np.abs(found - smooth).max() <= 3
    turned = Image.Exif()
    turned[0x112] = 6  # A quarter turn clockwise.
    Image.fromarray(smooth).save(tmp_path / "b.jpg", quality=95, exif=turned)
    found = read_any_image(tmp_path / "b.jpg").grey.astype(int)
    assert np.abs(found - np.rot90(smooth, k=-1)).max() <= 3


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_dropped(grey, tmp_path, alpha):
    """What is transparent was recorded too; a TIFF's decoder would darken it."""
    channels = [grey] * 3 + [np.full_like(grey, alpha)]
    for used in (channels, channels[2:]):
        Image.fromarray(np.dstack(used)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_any_image(tmp_path / "a.png").grey, grey)
    Image.fromarray(np.dstack(channels)).save(tmp_path / "a.tif")
    if alpha == 255:
        np.testing.assert_array_equal(read_any_image(tmp_path / "a.tif").grey, grey)
    else:
        with pytest.raises(InputError, match="transparent in parts"):
            read_any_image(tmp_path / "a.tif")


def test_colour_is_converted_by_luminance(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 10, 10]]], dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    # 0.299 R + 0.587 G + 0.114 B.
    assert read_any_image(tmp_path / "a.png").grey.tolist() == [[76, 150, 29, 10]]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_more_than_8_bit_are_scaled_from_their_own_range(grey, tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    # 12 bit in 16, as many scanners write it; by hand: 100..4180 in steps of 16.
    Image.fromarray(grey.astype(np.uint16) * 16 + 100).save(path)
    found = read_any_image(path)
    np.testing.assert_array_equal(found.grey, grey)
    assert found.scaled_from == (100, 255 * 16 + 100)
    # All 16 bit used: the same as dividing by 257.
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    np.testing.assert_array_equal(read_any_image(path).grey, grey)
    Image.fromarray(np.full((5, 7), 900, dtype=np.uint16)).save(path)
    assert read_any_image(path).grey.max() == 0


def write_tiff(path, pixels, **changes):
    """An uncompressed TIFF of pixels (H, W) or (H, W, samples) with some tags as they are given."""
    ifd, data = TiffImagePlugin.ImageFileDirectory_v2(), pixels.tobytes()
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    # Width, height, bits, no compression, 0 is black, strip, channels, rows and bytes of the strip.
    tags = {256: pixels.shape[1], 257: pixels.shape[0], 258: (8 * pixels.itemsize,) * samples}
    tags |= {259: 1, 262: 1 if samples < 3 else 2, 273: 0, 277: samples}
    tags |= {278: pixels.shape[0], 279: len(data)}
    for tag, value in (tags | {int(key[1:]): value for key, value in changes.items()}).items():
        ifd[tag] = value
    # Pillow counts the strip's place from the end of the tags.
    path.write_bytes(b"II*\0\x08\0\0\0" + ifd.tobytes(8) + data)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_0_is_white(grey, tmp_path, dtype):
    pixels = np.iinfo(dtype).max - grey.astype(dtype)
    path = write_tiff(tmp_path / "a.tif", pixels, _262=0)
    np.testing.assert_array_equal(read_any_image(path).grey, grey)


def test_tiffs_that_the_decoder_misreads_are_refused(grey, tmp_path):
    path, wide = tmp_path / "a.tif", grey.astype(np.uint16) * 100
    colour = np.dstack([wide] * 3)
    np.testing.assert_array_equal(read_any_image(write_tiff(path, colour)).grey, grey)
    for pixels, changes, words in (
        (colour, {"_284": 2}, "separate planes"),
        (
            np.dstack([wide, np.full_like(wide, 65535)]),
            {"_338": 2},
            "grey TIFF of 16 bit with alpha",
        ),
        (colour.astype(np.int32), {"_339": (2, 2, 2)}, "in colour of int32|cannot be decoded"),
    ):
        with pytest.raises(InputError, match=words):
            read_any_image(write_tiff(path, pixels, **changes))


def test_16_bit_in_colour(grey, tmp_path):
    wide = np.dstack([grey.astype(np.uint16) * 100] * 3)
    cv2.imwrite(str(tmp_path / "a.png"), wide)
    np.testing.assert_array_equal(read_any_image(tmp_path / "a.png").grey, grey)


def test_webp_and_gif_stills(grey, tmp_path):
    Image.fromarray(grey).save(tmp_path / "a.gif")
    np.testing.assert_array_equal(read_any_image(tmp_path / "a.gif").grey, grey)
    alpha = Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 128)]))
    alpha.save(tmp_path / "a.webp", lossless=True, exact=True)
    np.testing.assert_array_equal(read_any_image(tmp_path / "a.webp").grey, grey)
    first, *others = (Image.fromarray(np.roll(grey, shift)) for shift in range(3))
    for name in ("b.gif", "b.webp"):
        first.save(tmp_path / name, save_all=True, append_images=others)
        with pytest.raises(InputError, match="an animation of 3 images; save those"):
            read_any_image(tmp_path / name)
    for name in ("a.gif", "a.webp"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-600])
        with pytest.raises(InputError, match="damaged or cut short"):
            read_any_image(tmp_path / name)


def test_more_pixels_than_are_read(grey, tmp_path, monkeypatch):
    Image.fromarray(grey).save(tmp_path / "a.webp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", grey.size // 3)
    with pytest.raises(InputError, match=r"a\.webp: has more pixels than are read of a WebP"):
        read_any_image(tmp_path / "a.webp")


def test_links_to_nothing_are_not_passed_over(grey, tmp_path):
    for name in ("a.png", "c.txt"):
        Image.fromarray(grey).save(tmp_path / name, format="png")
    for name in ("b.png", "d.txt"):
        (tmp_path / name).symlink_to(tmp_path / "gone" / name)
    found, left = find_images([tmp_path])
    assert (list(found), left) == (["a", "b"], ["c.txt", "d.txt"])
    assert image_names(tmp_path) == ["a.png", "b.png"]
    with pytest.raises(InputError, match=r"b\.png: cannot be read \(No such file"):
        read_any_image(found["b"])


def test_what_cannot_be_read_is_one_line(grey, tmp_path, capfd):
    image = Image.fromarray(grey)
    cases = {}
    for name, what in (
        ("cut.jpg", "damaged or cut short JPEG"),
        ("cut.tif", "damaged or cut short TIFF"),
        ("cut.bmp", "damaged or cut short BMP"),
        ("cut.png", "PNG cut short"),
    ):
        image.save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-600])
        cases[name] = what
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    image.save(tmp_path / "pages.tif", save_all=True, append_images=[image])
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    cases |= {
        "text.png": "not a PNG, JPEG, TIFF, BMP, WebP, GIF or DICOM image",
        "empty.png": "not a PNG, JPEG, TIFF, BMP, WebP, GIF or DICOM image",
        "pages.tif": "holds 2 images",
        "float.tif": "its pixels are float32",
        "none.png": "cannot be read",
    }
    for name, what in cases.items():
        with pytest.raises(InputError, match=what) as error:
            read_any_image(tmp_path / name)
        assert "\n" not in str(error.value)
        assert name in str(error.value)
    # The decoder's own lines do not come between.
    assert capfd.readouterr().err == ""


def test_files_and_folders(grey, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("b.png", "a.JPG", "b_Annotation.png", "c_Annotation.png", ".hidden.png"):
        Image.fromarray(grey).save(folder / name, format="png")
    (folder / "clip.mp4").write_bytes(b"")
    (folder / "deeper.png").mkdir()
    Image.fromarray(grey).save(tmp_path / "z.tif")
    places = [tmp_path / "z.tif", folder, folder / "b.png"]
    found, left = find_images(places)
    assert found == {
        "z": tmp_path / "z.tif",
        "a": folder / "a.JPG",
        "b": folder / "b.png",
        "c_Annotation": folder / "c_Annotation.png",
    }
    assert left == [".hidden.png", "b_Annotation.png", "clip.mp4"]
    Image.fromarray(grey).save(tmp_path / "b.bmp")
    with pytest.raises(InputError, match=r"scans/b\.png and .*b\.bmp have one name"):
        find_images([folder, tmp_path / "b.bmp"])


def test_names_that_no_table_holds(grey, tmp_path):
    for folder in ("scans", "notes"):
        (tmp_path / folder).mkdir()
        Image.fromarray(grey).save(tmp_path / folder / "a.png")
    name = os.fsdecode(b"kopf\xfc.")
    (tmp_path / "notes" / f"{name}txt").write_text("x")
    assert find_images([tmp_path / "notes"])[1] == [r"kopf\xfc.txt"]
    (tmp_path / "scans" / "a.png").rename(tmp_path / "scans" / f"{name}png")
    for place in (tmp_path / "scans", tmp_path / "scans" / f"{name}png"):
        with pytest.raises(InputError, match=r"kopf\\xfc\.png: its name is not UTF-8; rename it"):
            find_images([place])
    with pytest.raises(InputError, match="is not UTF-8"):
        image_names(tmp_path / "scans")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("none.png", "no such file or folder"),
        ("clip.mp4", "a video, not an image; save its frames as PNG"),
        ("x.nii", "of a format that is not read"),
        ("x.txt", "not a PNG.* image; save the image as PNG"),
        ("empty", "no images; put"),
        ("films", r"no images \(clip.mp4 is none\)"),
    ],
)
def test_places_without_images(tmp_path, name, what):
    for made in ("clip.mp4", "x.nii", "x.txt"):
        (tmp_path / made).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "clip.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match=what):
        find_images([tmp_path / name])
