"""`sonosweep export`: what other programs read, with a sidecar; whole or not at all."""

import json
import shlex
import shutil
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from deliver_parts import HEAD, write_generator
from safetensors.torch import save_file
from segment_anything import SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from transformers import SamImageProcessor, SamModel, SamProcessor

from datamodules.phantom import write_phantom
from datamodules.storage import file_sha256
from experiments.deliver.sidecar import HC18_DATA, OTHER_DATA, PHANTOM_DATA, data_line
from experiments.stages.fit import fitted_segmenter
from experiments.store.fitted import described
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, SegmenterConfig
from lightning_modules.segmenters.sam.network import build_sam, decode, encoder_input
from lightning_modules.segmenters.unet.config import UnetConfig

UNIT_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
UNIT_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@pytest.fixture
def tiny_run(write_fit, tmp_path):
    return write_fit(tmp_path / "fit" / "0123", SegmenterConfig(backbone="tiny"))


@pytest.mark.parametrize("backbone", ["tiny", "lite"])
def test_segment_anything_loads_it_and_predicts_the_same(sonosweep, write_fit, tmp_path, backbone):
    config = SegmenterConfig(backbone=backbone)
    run_dir, out = write_fit(tmp_path / "fit" / "0123", config), tmp_path / "new" / "sam"
    words = ("export", run_dir, "--format", "segment-anything", "--out", out)
    code, printed, err = sonosweep(*words)
    assert (code, err) == (0, "")
    assert "segment-anything" in printed
    assert sorted(path.name for path in out.iterdir()) == ["sam.pth", "sonosweep.json"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sam"]
    state = torch.load(out / "sam.pth", weights_only=True, map_location="cpu")
    # The network as its makers built it, with their own weights; then ours.
    sam = build_sam(config)
    before = sam.mask_decoder.mask_tokens.weight.clone()
    sam.load_state_dict(state, strict=True)
    assert not torch.equal(sam.mask_decoder.mask_tokens.weight, before)
    # TinyViT takes its attention biases from the weights when it is set to eval.
    sam.train().eval()
    side = FRAME_SIDE_PX[backbone]
    image = np.random.default_rng(3).integers(0, 256, (side * 2 // 3, side, 3), dtype=np.uint8)
    box = np.array([0.2, 0.1, 0.8, 0.5]) * side
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    found = predictor.predict(box=box, multimask_output=False, return_logits=True)[2]
    ours = fitted_segmenter(run_dir, config=config).sam
    with torch.inference_mode():
        padded = torch.zeros(1, 3, side, side)
        padded[:, :, : image.shape[0]] = torch.from_numpy(image).permute(2, 0, 1) / 255
        expected = decode(ours, ours.image_encoder(padded), torch.from_numpy(box)[None].float())
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-4)
    assert 0 < (found > 0).mean() < 1


@pytest.fixture(params=["decoder", "lora", "late_lora", "full"])
def vit_run(request, write_fit, tmp_path):
    """A fitted `vit_tiny`: image side 128, frame side 32, with window and global blocks."""
    config = SegmenterConfig(backbone="vit_tiny", tuning=request.param)
    return write_fit(tmp_path / "fit" / "vit", config)


@pytest.fixture
def vit_case(vit_run):
    """An image of 84x128 in 0..255, a box in it, and the logits of our own way: frame and box."""
    manifest = json.loads((vit_run / "manifest.json").read_text())
    config = SegmenterConfig(**manifest["segmenter"]["settings"])
    module = fitted_segmenter(vit_run, config=config)
    image = torch.rand(84, 128, generator=torch.Generator().manual_seed(4)) * 255
    framed = torch.zeros(1, 1, 128, 128)
    framed[0, 0, :84] = image / 255
    valid_hw = torch.tensor([[21, 32]])
    box = torch.tensor([[4.0, 3.0, 25.0, 17.0]])
    with torch.inference_mode():
        prepared = encoder_input(module.sam, framed, valid_hw=valid_hw)
        expected = decode(module.sam, module.sam.image_encoder(prepared), box)
    assert 0 < (expected > 0).float().mean() < 1
    # The sidecar's rule, from the frame of 32 to the image of 128.
    return image, (box + 0.5) * 4 - 0.5, expected


def test_vit_in_sam_predictor(sonosweep, vit_run, vit_case, tmp_path):
    image, box, expected = vit_case
    words = ("export", vit_run, "--format", "segment-anything", "--out", tmp_path / "sam")
    assert sonosweep(*words)[0] == 0
    state = torch.load(tmp_path / "sam" / "sam.pth", weights_only=True, map_location="cpu")
    # segment_anything's own parts alone, as its registry puts them together.
    stock = stock_vit_tiny()
    stock.load_state_dict(state, strict=True)
    predictor = SamPredictor(stock.eval())
    predictor.set_torch_image(image.expand(1, 3, -1, -1), (84, 128))
    _, _, found = predictor.predict_torch(None, None, boxes=box, multimask_output=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_vit_in_transformers(sonosweep, vit_run, vit_case, tmp_path):
    image, box, expected = vit_case
    out = tmp_path / "hf"
    code, printed, _ = sonosweep("export", vit_run, "--format", "transformers", "--out", out)
    assert code == 0
    assert "transformers" in printed
    model, info = SamModel.from_pretrained(out, output_loading_info=True)
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[fault]
    processor = SamProcessor(SamImageProcessor.from_pretrained(out))
    # Whole numbers, as files hold them; the image's longest side is the encoder's.
    rgb = image.round().to(torch.uint8)[..., None].expand(-1, -1, 3).numpy()
    inputs = processor(rgb, input_boxes=[box.tolist()], return_tensors="pt")
    with torch.inference_mode():
        pixels = (image.expand(1, 3, -1, -1) / 255 - UNIT_MEAN) / UNIT_STD
        padded = torch.nn.functional.pad(pixels, (0, 0, 0, 44))
        assert (inputs["pixel_values"] - padded).abs().max() < 0.51 / 255 / 0.2
        found = model(
            pixel_values=padded,
            input_boxes=inputs["input_boxes"].float(),
            multimask_output=False,
        )
    torch.testing.assert_close(found.pred_masks[:, 0], expected, rtol=0, atol=1e-5)
    sidecar = json.loads((out / "sonosweep.json").read_text())
    assert sidecar["weights"]["file"] == "model.safetensors"
    assert sidecar["weights"]["sha256"] == file_sha256(out / "model.safetensors")
    assert (sidecar["input"]["image_side_px"], sidecar["input"]["frame_side_px"]) == (128, 32)
    assert sidecar["input"]["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])


def stock_vit_tiny():
    """`vit_tiny` out of segment_anything's parts."""
    return Sam(
        ImageEncoderViT(
            img_size=128,
            patch_size=16,
            embed_dim=32,
            depth=4,
            num_heads=2,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=5,
            global_attn_indexes=(1, 3),
        ),
        PromptEncoder(
            embed_dim=256,
            image_embedding_size=(8, 8),
            input_image_size=(128, 128),
            mask_in_chans=16,
        ),
        MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=1, embedding_dim=256, num_heads=8, mlp_dim=256),
        ),
    )


def test_sidecar_says_what_the_weights_do_not(sonosweep, tiny_run, tmp_path):
    out = tmp_path / "sam"
    sonosweep("export", tiny_run, "--format", "segment-anything", "--out", out)
    found = json.loads((out / "sonosweep.json").read_text())
    assert found["weights"] == {"file": "sam.pth", "sha256": file_sha256(out / "sam.pth")}
    assert found["run"] == {"stage": "fit", "id": "0123", "sweep": "test", "git_sha": "abc"}
    assert found["versions"]["torch"] == version("torch")
    assert found["data"] == HC18_DATA
    assert (found["backbone"], found["tuning"]) == ("tiny", "decoder")
    assert found["input"]["geometry"] == "pad"
    assert (found["input"]["image_side_px"], found["input"]["frame_side_px"]) == (64, 64)
    assert found["input"]["pixel_std"] == [255.0] * 3
    assert found["prompt"]["trained_under"] == ["whole_image", "jittered_box"]


def test_data_line(tmp_path):
    assert data_line({"content": {"images": [["001_HC", "x"], ["017_2HC", "y"]]}}) == HC18_DATA
    for other in ("P1_Plane", "CHC_0001", "HCUP3_a"):
        assert data_line({"content": {"images": [["001_HC", "x"], [other, "y"]]}}) == OTHER_DATA
    assert data_line({}) == OTHER_DATA
    write_phantom(tmp_path / "phantom", n_exams=3, seed=0)
    manifest = {
        "config": {"data": {"root": str(tmp_path / "phantom")}},
        "content": {"images": [["001_HC", "x"]]},
    }
    assert data_line(manifest) == PHANTOM_DATA


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--format", "onnx"], "--format onnx: unknown; use one of segment-anything, "),
        (["RUN", "--format", "segment-anything", "--out", "RUN"], "exists; choose another folder"),
        (["RUN", "--format", "segment-anything", "--out", "RUN/manifest.json/x"], "is no folder"),
        (["RUN/none", "--format", "transformers"], "no such directory; give a run's"),
        (["RUN", "--format", "transformers"], "not the image encoder of backbone tiny"),
        (["LITE", "--format", "transformers"], "not the image encoder of backbone lite"),
        (["RUN", "--format", "lora"], "a run of stage fit; give a Stable Diffusion generator"),
        (["RUN", "--format", "pipeline"], "a run of stage fit; give a Stable Diffusion generator"),
        (["PIXEL", "--format", "lora"], "pytorch_lora_weights.safetensors is missing"),
        (["PIXEL", "--format", "segment-anything"], "a run of stage generator; give a fitted SAM"),
        (["UNET", "--format", "segment-anything"], "a U-Net, which neither format holds"),
        (["ADAPTER", "--format", "segment-anything"], "fitted with tuning=adapter"),
        (["ADAPTER", "--format", "transformers"], "fitted with tuning=adapter"),
        (["BARE", "--format", "segment-anything"], "segmenter.safetensors is missing"),
        (["STRANGE", "--format", "segment-anything"], "the checkpoint is not of this segmenter"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(sonosweep, tiny_run, tmp_path, words, message):
    manifest = json.loads((tiny_run / "manifest.json").read_text())
    places = {"RUN": tiny_run}
    changed = {
        "LITE": {"segmenter": described(SegmenterConfig())},
        "ADAPTER": {"segmenter": described(SegmenterConfig(backbone="vit_tiny", tuning="adapter"))},
        "PIXEL": {"stage": "generator"},
        "UNET": {"segmenter": described(UnetConfig())},
        "BARE": {},
        "STRANGE": {},
    }
    for name, change in changed.items():
        places[name] = tmp_path / name.lower()
        shutil.copytree(tiny_run, places[name])
        (places[name] / "manifest.json").write_text(json.dumps(manifest | change))
    (places["BARE"] / "segmenter.safetensors").unlink()
    save_file({"sam.other": torch.zeros(1)}, places["STRANGE"] / "segmenter.safetensors")
    before = sorted(tmp_path.rglob("*"))
    given = []
    for word in words:
        head, _, rest = word.partition("/")
        given.append(str(places[head] / rest) if head in places else word)
    if "--out" not in words:
        given += ["--out", str(tmp_path / "new" / "out")]
    code, printed, err = sonosweep("export", *given)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert printed == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_documented_commands_run(sonosweep, monkeypatch, write_fit, tmp_path):
    """Every command of docs/export.md, on a run and scans of the names that it uses."""
    text = (Path(__file__).parents[3] / "docs" / "export.md").read_text()
    commands = [line for line in text.splitlines() if line.startswith("sonosweep ")]
    for run in ("ID", "ID2"):
        write_fit(tmp_path / "runs/store/fit" / run, SegmenterConfig(backbone="tiny"))
    write_fit(tmp_path / "vit", SegmenterConfig(backbone="vit_tiny"))
    row = {"pixels_sha256": "ab", "size_hw": [54, 80], "is_labelled": True}
    images = [row | {"ellipse": asdict(HEAD)}]
    write_generator(tmp_path / "runs/store/generator/ID", images)
    (tmp_path / "scans").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (54, 80), dtype=np.uint8)
    for path in ("scans/a.png", "scans/b.tif", "scan1.png", "scan2.jpg"):
        cv2.imwrite(str(tmp_path / path), image)
    (tmp_path / "sizes.csv").write_text("filename,pixel size(mm)\na.png,0.1\nb.tif,0.2\n")
    lines = ["filename,x0,y0,x1,y1", "a.png,9,9,70,45", "b.tif,9,9,70,45"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    done = 0
    for command in commands:
        words = shlex.split(command)
        if "transformers" in words:  # Which `tiny` has no place in.
            words[2] = "vit"
        if "--n" in words:
            words[words.index("--n") + 1] = "1"
        code, _, err = sonosweep(*words[1:])
        assert code == 0, err
        assert (tmp_path / words[words.index("--out") + 1]).is_dir()
        done += 1
    assert done >= 5


def test_a_failed_write_leaves_nothing(sonosweep, monkeypatch, tiny_run, tmp_path):
    def fail(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("lightning_modules.segmenters.sam.export.save_segment_anything", fail)
    out = tmp_path / "new" / "sam"
    words = ("export", tiny_run, "--format", "segment-anything", "--out", out)
    code, _, err = sonosweep(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "No space left on device" in err
    assert not (tmp_path / "new").exists()
