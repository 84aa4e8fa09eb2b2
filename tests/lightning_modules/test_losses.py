"""The segmentation loss against its formula, by hand and by a plain loop."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.losses import (
    cross_entropy,
    dice_cross_entropy_loss,
    dice_from_logits,
    valid_pixels,
)


def batch(items=3, size_hw=(54, 80), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, 1, *size_hw, generator=generator) * 3
    target = (torch.rand(items, 1, *size_hw, generator=generator) > 0.6).float()
    return logits, target


def full(items, size_hw=(54, 80)):
    return torch.tensor([size_hw] * items)


def loss_by_loop(logits, target, valid_hw):
    """The docstring's formula in float64 numpy, item by item, on the cut-out image."""
    losses = []
    for item, (h, w) in enumerate(valid_hw.tolist()):
        z = logits[item, 0, :h, :w].double().numpy()
        t = target[item, 0, :h, :w].double().numpy()
        p = 1 / (1 + np.exp(-z))
        dice = 1 - (2 * (p * t).sum() + 1e-5) / ((p**2).sum() + (t**2).sum() + 1e-5)
        entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
        losses.append(dice + entropy)
    return np.mean(losses)


def test_valid_pixels_by_hand():
    valid = valid_pixels(torch.tensor([[1, 2], [2, 3]]), size_hw=(2, 3))
    assert valid.int().tolist() == [[[[1, 1, 0], [0, 0, 0]]], [[[1, 1, 1], [1, 1, 1]]]]


def test_loss_by_hand():
    """Logits 0 give p = 1/2: Dice term 1 - 2*(1/2) / (4/4 + 1) = 1/2 over four pixels, BCE ln 2."""
    logits = torch.zeros(1, 1, 1, 4)
    target = torch.tensor([[[[1.0, 0, 0, 0]]]])
    loss = dice_cross_entropy_loss(logits, target, valid_hw=torch.tensor([[1, 4]]))
    assert loss.item() == pytest.approx(0.5 + math.log(2), abs=1e-5)


def test_cross_entropy_is_per_item_and_knows_no_padding():
    """Item 0: sure and right, and sure and wrong by 10; item 1: undecided, its padding wrong."""
    logits = torch.tensor([[[[10.0, 10.0]]], [[[0.0, 50.0]]]])
    target = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 0.0]]]])
    found = cross_entropy(logits, target, valid_hw=torch.tensor([[1, 2], [1, 1]]))
    right = math.log(1 + math.exp(-10))
    assert found.tolist() == pytest.approx([(right + right + 10) / 2, math.log(2)])


def test_loss_equals_the_formula_with_and_without_padding():
    logits, target = batch()
    for valid_hw in (full(3), torch.tensor([[54, 80], [30, 80], [54, 17]])):
        loss = dice_cross_entropy_loss(logits, target, valid_hw=valid_hw)
        assert loss.item() == pytest.approx(loss_by_loop(logits, target, valid_hw), abs=1e-5)


def test_padding_gets_neither_loss_nor_gradient():
    logits, target = batch(2)
    valid_hw = torch.tensor([[30, 80], [54, 17]])
    logits.requires_grad_()
    loss = dice_cross_entropy_loss(logits, target, valid_hw=valid_hw)
    loss.backward()
    padding = ~valid_pixels(valid_hw, size_hw=(54, 80))
    assert torch.all(logits.grad[padding] == 0)
    assert torch.all(logits.grad[~padding] != 0)
    changed = torch.where(padding, 1 - target, target)
    again = dice_cross_entropy_loss(logits, changed, valid_hw=valid_hw)
    assert again.item() == loss.item()


def test_loss_of_two_halves_averages_to_the_whole():
    logits, target = batch(8)
    valid_hw = torch.tensor([[54, 80], [30, 80]] * 4)
    whole = dice_cross_entropy_loss(logits, target, valid_hw=valid_hw)
    halves = [
        dice_cross_entropy_loss(logits[half], target[half], valid_hw=valid_hw[half])
        for half in (slice(0, 4), slice(4, 8))
    ]
    assert torch.stack(halves).mean().item() == pytest.approx(whole.item(), abs=1e-6)


def test_loss_of_perfect_wrong_and_empty_predictions():
    target = batch(1)[1]
    sure = (target * 2 - 1) * 50
    valid_hw = full(1)
    assert dice_cross_entropy_loss(sure, target, valid_hw=valid_hw).item() < 1e-6
    # Every pixel wrong by 50: Dice term 1, entropy 50.
    wrong = dice_cross_entropy_loss(-sure, target, valid_hw=valid_hw)
    assert wrong.item() == pytest.approx(51, abs=1e-3)
    empty = torch.zeros_like(target)
    nothing = dice_cross_entropy_loss(empty - 50, empty, valid_hw=valid_hw)
    assert nothing.item() == pytest.approx(0, abs=1e-6)
    half = dice_cross_entropy_loss(empty, empty, valid_hw=valid_hw)
    assert half.item() == pytest.approx(1 + math.log(2), abs=1e-4)
    full_loss = dice_cross_entropy_loss(empty + 50, empty + 1, valid_hw=valid_hw)
    assert full_loss.item() < 1e-6


def test_loss_is_float32_whatever_comes():
    logits, target = batch()
    loss = dice_cross_entropy_loss(logits.bfloat16(), target.half(), valid_hw=full(3))
    expected = dice_cross_entropy_loss(logits.bfloat16().float(), target, valid_hw=full(3))
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()


def test_loss_refuses_shapes_that_would_broadcast():
    logits, target = batch()
    with pytest.raises(ValueError, match="must both be"):
        dice_cross_entropy_loss(logits, target[:1], valid_hw=full(3))
    with pytest.raises(ValueError, match="must both be"):
        dice_cross_entropy_loss(logits[:, 0], target[:, 0], valid_hw=full(3))
    with pytest.raises(ValueError, match="empty batch"):
        dice_cross_entropy_loss(logits[:0], target[:0], valid_hw=full(3)[:0])


def test_dice_by_hand():
    logits = torch.tensor([1.0, 1, -1, 1]).reshape(1, 1, 1, 4)
    target = torch.tensor([1.0, 0, 1, 1]).reshape(1, 1, 1, 4)
    whole = dice_from_logits(logits, target, valid_hw=torch.tensor([[1, 4]]))
    assert whole.item() == pytest.approx(4 / 6)
    part = dice_from_logits(logits, target, valid_hw=torch.tensor([[1, 2]]))
    assert part.item() == pytest.approx(2 / 3)
    # Half or less of a pixel is background.
    soft = dice_from_logits(logits, target - 0.5, valid_hw=torch.tensor([[1, 4]]))
    assert soft.item() == 0


def test_dice_of_empty_and_full_masks():
    ones = torch.ones(4, 1, 5, 7)
    sign = torch.tensor([1.0, -1, -1, 1])[:, None, None, None]
    target = torch.tensor([1.0, 1, 0, 0])[:, None, None, None] * ones
    dice = dice_from_logits(ones * sign, target, valid_hw=torch.tensor([[5, 7]] * 4))
    assert dice.tolist() == [1, 0, 1, 0]
