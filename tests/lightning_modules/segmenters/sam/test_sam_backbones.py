"""ViT backbones: their files, their input, their frame, and SamPredictor beside them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import PromptEncoder, Sam

from datamodules.geometry import logits_to_original, place
from lightning_modules.errors import WeightsError
from lightning_modules.segmenters.sam.backbones import (
    SAM_PIXEL_MEAN,
    SAM_PIXEL_STD,
    VITS,
    normalised,
)
from lightning_modules.segmenters.sam.checkpoint_file import load_strictly, read_state_dict
from lightning_modules.segmenters.sam.config import (
    FRAME_SIDE_PX,
    IMAGE_SIDE_PX,
    SegmenterConfig,
    image_factor,
)
from lightning_modules.segmenters.sam.network import (
    build_sam,
    decode,
    encode,
    encoder_input,
    random_vit,
)


@pytest.fixture(scope="module")
def sam():
    return build_sam(SegmenterConfig(backbone="vit_tiny"))


def test_frames_are_whole_parts_of_images():
    assert FRAME_SIDE_PX.keys() == IMAGE_SIDE_PX.keys()
    for backbone, side in IMAGE_SIDE_PX.items():
        assert side == image_factor(backbone) * FRAME_SIDE_PX[backbone]
        if backbone in VITS:
            # The decoder's logits are four times its embedding: they fill the frame.
            assert side // VITS[backbone].patch_px * 4 == FRAME_SIDE_PX[backbone]


@pytest.mark.parametrize("wrapper", ["", "model", "state_dict", "model_state"])
@pytest.mark.parametrize("prefix", ["", "module.", "sam.", "module.sam.", "model."])
def test_any_usual_wrapping_is_taken_off(tmp_path, sam, wrapper, prefix):
    state = {prefix + name: tensor for name, tensor in sam.state_dict().items()}
    path = tmp_path / "weights.pth"
    torch.save({wrapper: state, "epoch": 3, "loss": 0.5} if wrapper else state, path)
    found = read_state_dict(path)
    assert found.keys() == sam.state_dict().keys()
    assert all(torch.equal(found[name], t) for name, t in sam.state_dict().items())


def test_wrappings_in_wrappings_are_taken_off(tmp_path, sam):
    """As a trainer's checkpoint of a compiled model in DDP; and what is no prefix of all stays."""
    state = {f"module._orig_mod.sam.{name}": t for name, t in sam.state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save({"model": {"state_dict": state, "step": 7}, "optimizer": {}}, path)
    assert read_state_dict(path).keys() == sam.state_dict().keys()
    mixed = {"sam.image_encoder.pos_embed": torch.zeros(1), "extra.weight": torch.zeros(1)}
    torch.save(mixed, path)
    assert read_state_dict(path).keys() == mixed.keys()


@pytest.mark.parametrize("backbone", ["vit_b", "vit_l", "vit_h", "medsam"])
def test_vits_are_segment_anythings_own(backbone):
    """Names and shapes, without memory for the weights: what fits there fits here."""
    with torch.device("meta"):
        stock = sam_model_registry["vit_b" if backbone == "medsam" else backbone]()
        ours = random_vit(backbone)
    expected = {name: tensor.shape for name, tensor in stock.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == expected
    windows = [block.window_size for block in stock.image_encoder.blocks]
    assert [block.window_size for block in ours.image_encoder.blocks] == windows
    assert ours.image_encoder.img_size == stock.image_encoder.img_size == 1024
    heads = [block.attn.num_heads for block in stock.image_encoder.blocks]
    assert [block.attn.num_heads for block in ours.image_encoder.blocks] == heads
    eps = {m.eps for m in stock.modules() if isinstance(m, torch.nn.LayerNorm)}
    assert {m.eps for m in ours.modules() if isinstance(m, torch.nn.LayerNorm)} == eps


@pytest.mark.parametrize("backbone", ["vit_b", "medsam"])
def test_a_file_is_loaded_and_read_at_1024(tmp_path, monkeypatch, backbone):
    """From the setting to logits of the frame, with an encoder of few channels."""
    small = replace(VITS[backbone], embed_dim=32, depth=2, num_heads=2, global_blocks=(1,))
    monkeypatch.setitem(VITS, backbone, small)
    source = random_vit(backbone)
    state = {name: t + 0.01 for name, t in source.state_dict().items()}
    path = tmp_path / "weights.pth"
    torch.save({"model": {f"module.{name}": t for name, t in state.items()}}, path)
    config = SegmenterConfig(backbone=backbone, weights_path=str(path))
    built = build_sam(config)
    assert all(torch.equal(tensor, state[name]) for name, tensor in built.state_dict().items())
    assert not any(module.training for module in built.modules())
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    assert {t.device.type for t in (*built.parameters(), *built.buffers())} == {"cpu"}
    assert all(parameter.requires_grad for parameter in built.image_encoder.parameters())
    image = torch.rand(1, 1, 1024, 1024, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[173, 256]])
    embedding = encode(built, image, valid_hw=sizes, precision="fp32")
    assert embedding.shape == (1, 256, 64, 64)
    grey = image[..., : 4 * 173, :]
    if backbone == "medsam":
        grey = (grey - grey.min()) / (grey.max() - grey.min())
        prepared = torch.nn.functional.pad(grey.expand(-1, 3, -1, -1), (0, 0, 0, 1024 - 4 * 173))
    else:
        prepared = built.preprocess(255 * grey.expand(-1, 3, -1, -1))
    with torch.no_grad():
        expected = built.image_encoder(prepared)
        logits = decode(built, embedding, torch.tensor([[20.0, 30, 200, 150]]))
    assert torch.allclose(embedding.float(), expected, atol=2e-3)
    assert logits.shape == (1, 1, 256, 256)
    torch.save(build_sam(SegmenterConfig()).state_dict(), path)
    with pytest.raises(WeightsError, match="it looks like lite"):
        build_sam(config)


def test_safetensors_are_read(tmp_path, sam):
    path = tmp_path / "weights.safetensors"
    save_file({f"sam.{name}": t.contiguous() for name, t in sam.state_dict().items()}, path)
    load_strictly(sam, read_state_dict(path), path=path, backbone="vit_tiny")


class Payload:
    """A pickle that would run code."""

    def __reduce__(self):
        return (print, ("this must not be printed",))


def test_weights_kept_in_half_are_used_in_full(tmp_path, sam):
    network = build_sam(SegmenterConfig(backbone="vit_tiny"))
    state = {name: tensor.half() for name, tensor in sam.state_dict().items()}
    load_strictly(network, state, path=tmp_path, backbone="vit_tiny")
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float())


@pytest.mark.parametrize("backbone", ["tiny", "vit_tiny"])
def test_weights_for_a_random_network_are_refused(backbone):
    with pytest.raises(ValueError, match=f"weights_path is not read by {backbone}"):
        SegmenterConfig(backbone=backbone, weights_path="sam_vit_b_01ec64.pth")


def test_files_that_are_no_weights_are_refused_in_one_line(tmp_path, sam, capfd):
    path = tmp_path / "weights.pth"
    torch.save({"model": Payload()}, path)
    with pytest.raises(WeightsError, match="holds more than weights, which is not run"):
        read_state_dict(path)
    assert "must not be printed" not in capfd.readouterr().out
    torch.save({"epoch": 3}, path)
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_state_dict(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    torch.save(sam.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="not readable as weights"):
        read_state_dict(path)
    cut = tmp_path / "cut.safetensors"
    save_file(dict(sam.state_dict()), cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not readable as weights"):
        read_state_dict(cut)


def test_weights_of_another_backbone_say_which(tmp_path, sam):
    path = tmp_path / "weights.pth"
    state = dict(sam.state_dict())
    state["image_encoder.pos_embed"] = torch.zeros(1, 64, 64, 1024)
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"1 of another shape.*pos_embed; it looks like vit_l"):
        load_strictly(sam, read_state_dict(path), path=path, backbone="vit_b")
    lite = build_sam(SegmenterConfig()).state_dict()
    with pytest.raises(WeightsError, match="it looks like lite"):
        load_strictly(sam, lite, path=path, backbone="vit_b")
    del state["mask_decoder.iou_token.weight"]
    state["image_encoder.pos_embed"] = sam.state_dict()["image_encoder.pos_embed"]
    with pytest.raises(WeightsError, match=r"1 missing, 0 unknown, .*iou_token"):
        load_strictly(sam, state, path=path, backbone="vit_tiny")


@pytest.mark.parametrize("valid_hw", [(22, 32), (32, 20), (32, 32)])
def test_imagenet_normalisation_is_sams_own(sam, valid_hw):
    """segment_anything normalises 0..255 and pads with zeros after it."""
    height, width = 4 * valid_hw[0], 4 * valid_hw[1]
    image = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    stock = Sam(
        sam.image_encoder,
        sam.prompt_encoder,
        sam.mask_decoder,
        pixel_mean=list(SAM_PIXEL_MEAN),
        pixel_std=list(SAM_PIXEL_STD),
    )
    expected = stock.preprocess(255 * image[..., :height, :width].expand(-1, 3, -1, -1))
    ours = normalised(image, valid_hw=torch.tensor([valid_hw]), backbone="vit_tiny")
    assert ours.shape == expected.shape == (1, 3, 128, 128)
    assert torch.allclose(ours, expected, atol=1e-5)
    assert ours[..., height:, :].abs().sum() == 0


def test_boxes_in_the_frame_are_those_in_the_image(sam):
    """The prompt encoder sees a box as shares of its input's side, pixel centres at one half."""
    stock = PromptEncoder(
        embed_dim=256, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16
    )
    stock.load_state_dict(sam.prompt_encoder.state_dict())
    boxes = torch.tensor([[0.0, 0.0, 31.0, 31.0], [3.0, 7.0, 20.0, 25.5]])
    in_image = (boxes + 0.5) * 4 - 0.5
    with torch.no_grad():
        ours, _ = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
        theirs, _ = stock(points=None, boxes=in_image, masks=None)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_masks_are_those_of_sam_predictor(sam):
    """Our batch of one beside SamPredictor with the same weights on the same picture."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (88, 128)).astype(np.uint8)
    stock = Sam(
        sam.image_encoder,
        PromptEncoder(
            embed_dim=256,
            image_embedding_size=(8, 8),
            input_image_size=(128, 128),
            mask_in_chans=16,
        ),
        sam.mask_decoder,
        pixel_mean=list(SAM_PIXEL_MEAN),
        pixel_std=list(SAM_PIXEL_STD),
    ).eval()
    stock.load_state_dict(sam.state_dict())
    predictor = SamPredictor(stock)
    predictor.set_image(np.stack([grey] * 3, axis=-1))
    box = torch.tensor([[2.0, 3.0, 28.0, 18.0]])
    in_image = ((box + 0.5) * 4 - 0.5).numpy()[0]
    masks, _, low_res = predictor.predict(box=in_image, multimask_output=False)
    frame = torch.zeros(1, 1, 128, 128)
    frame[0, 0, :88] = torch.from_numpy(grey / 255.0)
    valid_hw = torch.tensor([[22, 32]])
    with torch.no_grad():
        embedding = sam.image_encoder(encoder_input(sam, frame, valid_hw=valid_hw))
        logits = decode(sam, embedding, box)
        kept = encode(sam, frame, valid_hw=valid_hw, precision="fp32")
    assert np.allclose(logits[0].numpy(), low_res, atol=1e-4)
    assert low_res.std() > 0.01
    # Masks at the picture's own size, which here is the encoder's.
    placement = replace(
        place((88, 128), frame_hw=(32, 32), mode="pad"), frame_hw=(128, 128), valid_hw=(88, 128)
    )
    ours = logits_to_original(logits, placement)[0, 0] > 0
    assert (ours.numpy() != masks[0]).mean() < 1e-3
    # Embeddings are kept as float16.
    assert torch.allclose(kept.float(), embedding, atol=2e-3)


def test_a_wrong_size_is_refused(sam):
    with pytest.raises(ValueError, match="images must be"):
        encode(sam, torch.zeros(1, 1, 32, 32), valid_hw=torch.tensor([[32, 32]]), precision="fp32")
