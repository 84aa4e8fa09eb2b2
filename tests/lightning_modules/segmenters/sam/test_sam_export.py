"""Exported weights: transformers' SamModel and SamPredictor give the masks of the original."""

from functools import partial

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn
from transformers import SamImageProcessor, SamModel, SamProcessor

from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.sam.export import (
    has_vit,
    save_segment_anything,
    save_transformers,
    transformers_config,
    transformers_model,
    transformers_name,
    transformers_state_dict,
)
from lightning_modules.segmenters.sam.network import build_sam

SIDE, GRID = 128, 8
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
UNIT_MEAN, UNIT_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def stock_sam(seed=0, *, depth=4, window_size=3):
    """A small SAM out of segment_anything's parts alone, every weight random and not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam = Sam(
            ImageEncoderViT(
                img_size=SIDE,
                patch_size=16,
                embed_dim=48,
                depth=depth,
                num_heads=4,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=window_size,
                global_attn_indexes=(1, depth - 1),
            ),
            PromptEncoder(
                embed_dim=256,
                image_embedding_size=(GRID, GRID),
                input_image_size=(SIDE, SIDE),
                mask_in_chans=16,
            ),
            MaskDecoder(
                transformer_dim=256,
                transformer=TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=512),
                num_multimask_outputs=3,
                iou_head_depth=3,
                iou_head_hidden_dim=256,
            ),
            pixel_mean=list(MEAN),
            pixel_std=list(STD),
        )
        with torch.no_grad():
            for name, parameter in sam.named_parameters():
                # Zero positions, unit norms and zero biases would hide a wrong or missing one.
                if parameter.ndim == 1 or "rel_pos" in name or "pos_embed" in name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return sam.eval()


@pytest.fixture(scope="module")
def sam():
    return stock_sam()


@pytest.fixture(scope="module")
def image():
    """uint8 RGB, 86 rows and 128 columns: the longest side is the encoder's."""
    return np.random.default_rng(5).integers(0, 256, (86, SIDE, 3), dtype=np.uint8)


BOX = np.array([20.0, 11.0, 90.0, 70.0])


def test_names_by_hand():
    depth = {"mask_decoder.iou_prediction_head": 3, "mask_decoder.output_hypernetworks_mlps.2": 4}
    for ours, theirs in {
        "image_encoder.pos_embed": "vision_encoder.pos_embed",
        "image_encoder.blocks.11.attn.rel_pos_h": "vision_encoder.layers.11.attn.rel_pos_h",
        "image_encoder.blocks.0.norm2.bias": "vision_encoder.layers.0.layer_norm2.bias",
        "image_encoder.neck.2.weight": "vision_encoder.neck.conv2.weight",
        "mask_decoder.transformer.layers.1.norm4.weight": (
            "mask_decoder.transformer.layers.1.layer_norm4.weight"
        ),
        "mask_decoder.iou_prediction_head.layers.0.weight": (
            "mask_decoder.iou_prediction_head.proj_in.weight"
        ),
        "mask_decoder.iou_prediction_head.layers.1.weight": (
            "mask_decoder.iou_prediction_head.layers.0.weight"
        ),
        "mask_decoder.iou_prediction_head.layers.2.bias": (
            "mask_decoder.iou_prediction_head.proj_out.bias"
        ),
        "mask_decoder.output_hypernetworks_mlps.2.layers.2.bias": (
            "mask_decoder.output_hypernetworks_mlps.2.layers.1.bias"
        ),
        "prompt_encoder.no_mask_embed.weight": "prompt_encoder.no_mask_embed.weight",
    }.items():
        assert transformers_name(ours, mlp_depth=depth) == theirs


def test_every_weight_has_its_place(sam):
    ours, renamed = sam.state_dict(), transformers_state_dict(sam.state_dict())
    # One more: the position matrix stands under two names.
    assert len(renamed) == len(ours) + 1
    assert renamed.keys() == SamModel(transformers_config(sam)).state_dict().keys()
    assert sum(t.numel() for t in renamed.values()) == sum(t.numel() for t in ours.values()) + 256
    assert transformers_state_dict({}) == {}


def test_transformers_gives_the_same_embeddings_and_masks(sam, image, tmp_path):
    save_transformers(sam, sam.state_dict(), tmp_path, image_mean=UNIT_MEAN, image_std=UNIT_STD)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    model, info = SamModel.from_pretrained(tmp_path, output_loading_info=True)
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[fault]
    processor = SamProcessor(SamImageProcessor.from_pretrained(tmp_path))
    inputs = processor(image, input_boxes=[[BOX.tolist()]], return_tensors="pt")
    with torch.inference_mode():
        ours = sam.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])
        torch.testing.assert_close(inputs["pixel_values"], ours, rtol=0, atol=1e-5)
        embedding = sam.image_encoder(ours)
        theirs = model.get_image_embeddings(ours)
        torch.testing.assert_close(theirs, embedding, rtol=0, atol=1e-5)
        found = model(
            pixel_values=ours, input_boxes=inputs["input_boxes"].float(), multimask_output=False
        )
        sparse, dense = sam.prompt_encoder(
            points=None, boxes=torch.from_numpy(BOX)[None].float(), masks=None
        )
        logits, iou = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
    assert logits.std() > 0.05  # Not two constants.
    torch.testing.assert_close(found.pred_masks[:, 0], logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.iou_scores[:, 0], iou, rtol=0, atol=1e-5)


def test_mask_prompts_and_three_masks_agree_too(sam):
    """What our own use leaves alone is carried over as well."""
    model = transformers_model(sam, sam.state_dict())
    generator = torch.Generator().manual_seed(3)
    embedding = torch.randn(1, 256, GRID, GRID, generator=generator)
    prompt = torch.randn(1, 1, 4 * GRID, 4 * GRID, generator=generator)
    point, label = torch.tensor([[[31.0, 50.0]]]), torch.tensor([[1]])
    with torch.inference_mode():
        sparse, dense = sam.prompt_encoder(points=(point, label), boxes=None, masks=prompt)
        logits, iou = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        found = model(
            image_embeddings=embedding,
            input_points=point[None],
            input_labels=label[None],
            input_masks=prompt,
            multimask_output=True,
        )
    torch.testing.assert_close(found.pred_masks[0], logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.iou_scores[0], iou, rtol=0, atol=1e-5)


def test_sam_predictor_reads_the_bare_state_dict(sam, image, tmp_path):
    path = tmp_path / "sam.pth"
    state = sam.state_dict()
    # A view into something larger, as a merged weight may be.
    state["image_encoder.pos_embed"] = torch.stack([state["image_encoder.pos_embed"]] * 50)[7]
    save_segment_anything(state, path)
    assert path.stat().st_size < 1.2 * sum(4 * t.numel() for t in sam.state_dict().values())
    loaded = torch.load(path, weights_only=True, map_location="cpu")
    assert loaded.keys() == sam.state_dict().keys()
    other = stock_sam(seed=1)
    other.load_state_dict(loaded, strict=True)
    masks = []
    for network in (sam, other, stock_sam(seed=1)):
        predictor = SamPredictor(network)
        predictor.set_image(image)
        masks.append(predictor.predict(box=BOX, multimask_output=False, return_logits=True)[0])
    np.testing.assert_array_equal(masks[0], masks[1])
    assert not np.allclose(masks[0], masks[2], atol=1e-2)


def test_other_networks_are_refused(sam):
    tiny = build_sam(SegmenterConfig(backbone="tiny"))
    assert has_vit(sam.image_encoder)
    assert not has_vit(tiny.image_encoder)
    with pytest.raises(ValueError, match="holds SAM's ViT, not TinyImageEncoder"):
        transformers_model(tiny, tiny.state_dict())
    state = sam.state_dict()
    del state["image_encoder.pos_embed"]
    with pytest.raises(ValueError, match="do not fit"):
        transformers_model(sam, state)


def test_sizes_of_vit_b_are_transformers_own():
    """SamConfig's defaults describe Meta's ViT-B: what we read off that network must equal them."""
    from segment_anything import sam_model_registry
    from transformers import SamConfig

    with torch.device("meta"):
        found = transformers_config(sam_model_registry["vit_b"]()).to_dict()
    expected = SamConfig().to_dict()
    assert found["mask_decoder_config"].pop("layer_norm_eps") == 1e-5
    expected["mask_decoder_config"].pop("layer_norm_eps")
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        assert found[part] == expected[part]
