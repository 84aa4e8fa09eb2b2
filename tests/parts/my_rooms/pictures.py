"""The data layout `pictures`: pictures/NAME.png, and labels/NAME.png with the filled head."""

from datamodules.errors import InputError
from datamodules.layouts import LAYOUTS, Layout
from datamodules.samples import Sample


def read_pictures(root):
    """One exam a file; pixel sizes are not known."""
    samples = []
    for path in sorted((root / "pictures").glob("*.png")):
        label = root / "labels" / path.name
        if not label.is_file():
            raise InputError(f"{path}: no label; add {label}")
        samples.append(
            Sample(
                sample_id=path.stem,
                image_path=path,
                annotation_path=label,
                exam_id=path.stem,
                frame=1,
                pixel_size_mm=None,
                hc_mm=None,
                cohort="pictures",
            )
        )
    if not samples:
        raise InputError(f"{root}: no pictures/*.png; check the path to the data")
    return samples


LAYOUTS["pictures"] = Layout(
    holds="pictures/ and labels/ with files of the same names",
    folders=("pictures",),
    annotations="labels/*.png",
    read=read_pictures,
)
