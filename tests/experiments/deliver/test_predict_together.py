"""`sonosweep predict` by several runs, and by boxes."""

import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from deliver_parts import segment_images

from datamodules.ellipse import Ellipse, rasterise
from experiments.deliver.confidence import judge
from experiments.deliver.inference import load_run, segment_together


class ByHand:
    """A segmenter whose logits of the frame are `left` in the left half, `right` in the right."""

    device = torch.device("cpu")

    def __init__(self, frame_hw, left, right):
        self.config = SimpleNamespace(frame_hw=frame_hw, resize_mode="squash", image_factor=1)
        self.logits = torch.full((1, 1, *frame_hw), float(right))
        self.logits[..., : frame_hw[1] // 2] = left
        self.boxes = []

    def to(self, device):
        return self

    def predict(self, batch, boxes):
        self.boxes.append(boxes[0].tolist())
        return self.logits


@pytest.fixture
def scan(tmp_path):
    """A PNG of 54x80."""
    path = tmp_path / "scan.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (54, 80), np.uint8))
    return path


def test_logits_of_different_frames_are_averaged_at_the_images_size(scan):
    """The sure one outvotes two that are less so; by majority nothing would be found."""
    sure, other, third = (
        ByHand((32, 32), 5, -1), ByHand((64, 96), -1, -2), ByHand((16, 24), -1, -2)
    )  # fmt: skip
    asked = {"prompt": "whole_image"}
    ((name, (mask,), dice),) = segment_together([sure, other, third], {"a": scan}, **asked)
    expected = np.zeros((54, 80), np.uint8)
    expected[:, :40] = 1
    assert name == "a"
    assert (mask[:, :38] == expected[:, :38]).all()
    assert (mask[:, 42:] == expected[:, 42:]).all()
    assert dice == 0
    ((_, (mask,), dice),) = segment_together([sure, ByHand((8, 8), 1, -9)], {"a": scan}, **asked)
    assert mask.any()
    assert 0.9 < dice < 1
    assert next(segment_together([sure], {"a": scan}, **asked))[2] == 1


def test_runs_that_disagree_are_doubtful():
    head = Ellipse(
        center_x_px=42, center_y_px=25, semi_major_px=20, semi_minor_px=15, theta_rad=0.1
    )
    mask = rasterise(head, size_hw=(54, 80))
    image = np.random.default_rng(0).integers(0, 255, (54, 80), np.uint8)
    views = {"mask": mask, "second_mask": mask, "ellipse": head}
    assert judge(image, **views)[1] == ""
    assert judge(image, **views, runs_dice=0.5) == (0.5, "the runs agree by 0.500 only")


def test_several_runs(sonosweep, run_dir, unet_dir, scan, tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(run_dir, twin)
    found, masks = {}, {}
    for name, runs in (
        ("one", [run_dir]),
        ("same", [run_dir, twin]),
        ("both", [run_dir, unet_dir]),
    ):
        words = ("predict", *runs, scan, "--out", tmp_path / name, "--json")
        code, printed, _ = sonosweep(*words)
        assert code == 0
        found[name] = json.loads(printed)
        masks[name] = cv2.imread(str(tmp_path / name / "network_masks" / "scan.png"), -1) > 0
    assert found["one"]["predictions"] == found["same"]["predictions"]
    assert found["one"]["run"] == str(run_dir)
    assert (found["both"]["run"], found["both"]["run_ids"]) == (None, ["0123", "u"])
    assert found["both"]["runs"] == [str(run_dir), str(unet_dir)]
    # Where both agree, so does their mean.
    ((_, other),) = segment_images(load_run(unet_dir), {"s": scan}, prompt="whole_image")
    mask, own, other = masks["both"], masks["one"], other > 0
    assert ((own & other) <= mask).all()
    assert (mask <= (own | other)).all()
    assert (own != other).any()


def test_boxes_are_those_of_the_image(scan):
    """By hand, each frame being twice the image: edges from 9.5 to 69.5 become 19.5 to 139.5."""
    box = (10, 5, 69, 49)
    module = ByHand((108, 160), 1, 1)
    asked = {"prompt": "whole_image", "boxes": {"a": box}}
    list(segment_together([module], {"a": scan}, **asked, view_zooms=(1.0, 0.8)))
    assert module.boxes[0] == pytest.approx([20, 10, 139, 99])
    # Edges from 19.5 and 9.5 to 139.5 and 99.5 move towards the middle, 79.5 and 53.5.
    assert module.boxes[1] == pytest.approx([32, 18.8, 127, 89.8])


def test_predict_by_boxes(sonosweep, write_fit, hc18_folder, tmp_path):
    from lightning_modules.segmenters.sam.config import SegmenterConfig

    run = write_fit(tmp_path / "run", SegmenterConfig(backbone="tiny"), spread=0.2)
    images = sorted(hc18_folder.glob("training_set/*_HC.png"))[:2]
    table = tmp_path / "boxes.csv"
    found = {}
    for name, boxes in (("whole", "0,0,79,53"), ("part", "20,10,60,44")):
        table.write_text("filename,x0,y0,x1,y1\n" + "".join(f"{p.name},{boxes}\n" for p in images))
        out = tmp_path / name
        code, printed, _ = sonosweep(
            "predict", run, *images, "--boxes", table, "--out", out, "--json"
        )
        assert code == 0
        assert json.loads(printed)["prompt"] == "given_box"
        found[name] = [cv2.imread(str(out / "network_masks" / p.name), -1) for p in images]
    paths = {path.stem: path for path in images}
    plain = dict(segment_images(load_run(run), paths, prompt="whole_image"))
    for mask, other, expected in zip(found["whole"], found["part"], plain.values(), strict=True):
        np.testing.assert_array_equal(mask, 255 * expected)
        assert (mask != other).any()


@pytest.mark.parametrize(
    ("words", "rows", "message"),
    [
        (["UNET", "SCAN"], "scan.png,1,2,30,40", "which takes no prompt; leave the option out"),
        (["RUN", "UNET", "SCAN"], "scan.png,1,2,30,40", "--boxes: UNET is a U-Net"),
        (["SCAN"], "scan.png,1,2,30,40", "which takes no prompt; leave the option out"),
        (["RUN", "SCAN"], "other.png,1,2,30,40", "no row for 1 of 1 images (scan.png)"),
        (
            ["RUN", "SCAN"],
            "scan.png,1,2,80,40",
            "scan.png: 1,2,80,40 is no box in an image of 80x54",
        ),
        (["RUN", "SCAN"], "scan.png,30,2,1,40", "30,2,1,40 is no box in"),
        (["RUN", "SCAN"], "scan.png,1,x,30,40", "the box is '1,x,30,40'; expected four numbers"),
        (["RUN", "SCAN", "--prompt", "predicted_box"], "", "are both given; leave one out"),
        (["RUN", "RUN", "SCAN"], "scan.png,1,2,30,40", "given twice, and would count twice"),
        (["RUN", "UNET"], "", "2 runs and no images"),
    ],
)
def test_bad_boxes_and_runs_are_one_line(
    sonosweep, run_dir, unet_dir, scan, tmp_path, words, rows, message
):
    table = tmp_path / "boxes.csv"
    table.write_text(f"filename,x0,y0,x1,y1\n{rows}\n")
    places = {"RUN": run_dir, "UNET": unet_dir, "SCAN": scan}
    given = [places.get(word, word) for word in words]
    out = tmp_path / "out"
    code, printed, err = sonosweep("predict", *given, "--boxes", table, "--out", out)
    assert (code, printed, err.count("error: ")) == (2, "", 1)
    assert message.replace("UNET", str(unet_dir)) in err
    assert not out.exists()
