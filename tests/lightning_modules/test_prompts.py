"""Box prompts and the box-only control."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_modules.prompts import (
    boxes_from_masks,
    drawn_boxes,
    ellipse_in_box_mask,
    jitter_boxes,
    largest_components,
    predicted_boxes,
    prompt_boxes,
    whole_image_boxes,
)

VALID_HW = torch.tensor([[54, 80]])


def test_tight_boxes_equal_a_search_through_the_pixels():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(20, 1, 54, 80)
    for item in mask:
        y, x = (
            torch.randint(0, 54, (3,), generator=generator),
            torch.randint(0, 80, (3,), generator=generator),
        )
        item[0, y, x] = 1
    boxes = boxes_from_masks(mask, valid_hw=VALID_HW.expand(20, 2))
    for box, item in zip(boxes, mask.numpy(), strict=True):
        y, x = np.nonzero(item[0])
        assert box.tolist() == [x.min(), y.min(), x.max(), y.max()]
    assert boxes.dtype == torch.float32


def test_tight_boxes_of_border_full_and_empty_masks():
    mask = torch.zeros(4, 1, 54, 80)
    mask[0, 0, 53, 79] = 1
    mask[1, 0, 0, :] = 1
    mask[2] = 1
    valid_hw = torch.tensor([[54, 80], [54, 80], [54, 80], [30, 80]])
    boxes = boxes_from_masks(mask, valid_hw=valid_hw)
    assert boxes[0].tolist() == [79, 53, 79, 53]
    assert boxes[1].tolist() == [0, 0, 79, 0]
    assert boxes[2].tolist() == [0, 0, 79, 53]
    # Empty: the rectangle of the image, without its padding.
    assert boxes[3].tolist() == [0, 0, 79, 29]


def test_boxes_refuse_masks_without_a_channel():
    with pytest.raises(ValueError, match=r"\(1, 54, 80\)"):
        boxes_from_masks(torch.zeros(1, 54, 80), valid_hw=VALID_HW)


def test_whole_image_leaves_the_padding_out():
    boxes = whole_image_boxes(torch.tensor([[173, 256], [256, 200]]))
    assert boxes.tolist() == [[0, 0, 255, 172], [0, 0, 199, 255]]
    assert whole_image_boxes(torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 4)


def test_jitter_by_hand_scales_per_axis_and_moves_outward():
    boxes = torch.tensor([[100.0, 60.0, 120.0, 90.0]])
    moved = jitter_boxes(
        boxes, offsets=torch.tensor([[2, 4, 8, 16]]), valid_hw=torch.tensor([[128, 256]])
    )
    assert moved.tolist() == [[98, 58, 128, 98]]


def test_jitter_stops_at_the_image_border_not_at_the_padding():
    boxes = torch.tensor([[3.0, 2.0, 250.0, 170.0]])
    moved = jitter_boxes(boxes, offsets=torch.full((1, 4), 19), valid_hw=torch.tensor([[173, 256]]))
    assert moved.tolist() == [[0, 0, 255, 172]]
    still = jitter_boxes(boxes, offsets=torch.zeros(1, 4), valid_hw=torch.tensor([[173, 256]]))
    assert torch.equal(still, boxes)


def test_prompt_boxes_by_protocol():
    mask = torch.zeros(1, 1, 64, 64)
    mask[0, 0, 10:20, 30:50] = 1
    common = {"valid_hw": torch.tensor([[32, 64]]), "offsets": torch.tensor([[4, 8, 4, 8]])}
    assert prompt_boxes("tight_box", mask=mask, **common).tolist() == [[30, 10, 49, 19]]
    assert prompt_boxes("jittered_box", mask=mask, **common).tolist() == [[29, 9, 50, 20]]
    assert prompt_boxes("whole_image", mask=mask, **common).tolist() == [[0, 0, 63, 31]]
    assert torch.equal(
        prompt_boxes("whole_image", mask=1 - mask, **common),
        prompt_boxes("whole_image", mask=mask, **common),
    )
    with pytest.raises(ValueError, match="'predicted_box'"):
        prompt_boxes("predicted_box", mask=mask, **common)


def draw(*rows):
    return torch.tensor([[[[value == "#" for value in row] for row in rows]]])


def test_largest_component_by_hand():
    mask = draw(
        "##......#",
        "#.......#",
        "...##...#",
        "..####...",
        ".....##..",
        "#........",
    )
    kept = largest_components(mask)
    expected = draw(
        ".........",
        ".........",
        "...##....",
        "..####...",
        ".....##..",
        ".........",
    )
    assert kept.dtype == torch.float32
    assert torch.equal(kept, expected.float())


def test_largest_component_is_8_connected_and_the_first_of_equals():
    diagonal = draw("#....", ".#...", "..#..", "...##")
    assert torch.equal(largest_components(diagonal), diagonal.float())
    equals = draw("##.##", "##.##")
    assert torch.equal(largest_components(equals), draw("##...", "##...").float())


def test_largest_component_of_a_batch_equals_a_flood_fill():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(12, 1, 18, 27, generator=generator) < 0.35
    masks[3], masks[7] = False, True
    kept = largest_components(masks)
    assert kept.shape == masks.shape
    assert not kept[3].any()
    assert kept[7].all()
    for mask, found in zip(masks[:, 0].numpy(), kept[:, 0].numpy(), strict=True):
        labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
        sizes = [int((labels == k).sum()) for k in range(1, n + 1)]
        assert found.sum() == max(sizes, default=0)
        # One part of them, and whole.
        assert len(np.unique(labels[found > 0])) == min(1, n)
    assert largest_components(masks[:0]).shape == (0, 1, 18, 27)


def test_a_speck_does_not_widen_the_box():
    mask = torch.zeros(1, 1, 54, 80, dtype=torch.bool)
    mask[0, 0, 20:40, 30:60] = True
    mask[0, 0, 1, 2] = True
    boxes = boxes_from_masks(largest_components(mask), valid_hw=VALID_HW)
    assert boxes.tolist() == [[30, 20, 59, 39]]
    assert boxes_from_masks(mask.float(), valid_hw=VALID_HW).tolist() == [[2, 1, 59, 39]]
    empty = largest_components(torch.zeros(1, 1, 54, 80, dtype=torch.bool))
    assert boxes_from_masks(empty, valid_hw=VALID_HW).tolist() == [[0, 0, 79, 53]]


def test_the_predicted_box_is_that_of_the_largest_part_inside_the_image():
    logits = torch.full((2, 1, 54, 80), -1.0)
    logits[0, 0, 10:20, 30:50] = 1.0
    logits[0, 0, 0, 0] = 9.0
    logits[0, 0, 40:, :] = 1.0  # in the padding, and larger than the head
    boxes = predicted_boxes(logits, valid_hw=torch.tensor([[40, 80], [54, 60]]))
    assert boxes.tolist() == [[30, 10, 49, 19], [0, 0, 59, 53]]


def test_each_items_box_is_of_the_protocol_that_was_drawn_for_it():
    mask = torch.zeros(3, 1, 54, 80)
    mask[:, 0, 10:20, 30:50] = 1
    boxes = drawn_boxes(
        ("tight_box", "whole_image"),
        mask=mask,
        valid_hw=VALID_HW.expand(3, 2),
        offsets=torch.zeros(3, 4),
        choice=torch.tensor([1, 0, 1]),
    )
    assert boxes.tolist() == [[0, 0, 79, 53], [30, 10, 49, 19], [0, 0, 79, 53]]


def test_ellipse_in_box_by_hand():
    box = torch.tensor([[2.0, 1.0, 6.0, 3.0]])
    mask = ellipse_in_box_mask(box, size_hw=(5, 9), valid_hw=torch.tensor([[5, 9]]))
    expected = [
        ".........",
        "...###...",
        "..#####..",
        "...###...",
        ".........",
    ]
    assert mask.dtype == torch.bool
    rows = ["".join("#" if value else "." for value in row) for row in mask[0, 0].tolist()]
    assert rows == expected


def test_ellipse_in_box_has_the_ellipse_area_and_its_box_is_the_box():
    boxes = torch.tensor([[10.0, 20.0, 209.0, 139.0], [0.0, 0.0, 255.0, 172.0]])
    valid_hw = torch.tensor([[173, 256]] * 2)
    masks = ellipse_in_box_mask(boxes, size_hw=(256, 256), valid_hw=valid_hw)
    area = masks.sum(dim=(1, 2, 3)).tolist()
    assert area == pytest.approx([np.pi * 100 * 60, np.pi * 128 * 86.5], rel=2e-3)
    assert torch.equal(boxes_from_masks(masks.float(), valid_hw=valid_hw), boxes)


def test_ellipse_in_a_jittered_box_shrinks_back_by_the_jitter():
    tight = torch.tensor([[40.0, 30.0, 179.0, 129.0]])
    valid_hw = torch.tensor([[173, 256]])
    jittered = jitter_boxes(tight, offsets=torch.full((1, 4), 10), valid_hw=valid_hw)
    common = {"size_hw": (256, 256), "valid_hw": valid_hw}
    shrunk = ellipse_in_box_mask(jittered, shrink_px=10, **common)
    assert torch.equal(shrunk, ellipse_in_box_mask(tight, **common))
    vanished = ellipse_in_box_mask(tight, shrink_px=1000, **common)
    assert vanished.sum() <= 1
