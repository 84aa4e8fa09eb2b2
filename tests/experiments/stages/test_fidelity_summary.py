"""The summary of fidelity: planted copies, equal rows for synthetic and real, small sets."""

import json

import cv2
import numpy as np
import pytest

from experiments.stages.fidelity import FidelitySet, summarise_fidelity
from experiments.stages.fidelity_table import fidelity_rows
from lightning_modules.fidelity import (
    mask_agreement,
    nearest_distance,
    polynomial_mmd,
    precision_recall_density_coverage,
)

HW = (54, 80)
DIMENSION = 12
BLOCKS = ("synthetic_against_train", "real_test_against_train")


def picture(rng, size_hw):
    """A bright ring on smooth noise and its mask."""
    height, width = size_hw
    field = cv2.GaussianBlur(rng.normal(size=size_hw), (0, 0), height / 20)
    image = 90 + 25 * field / field.std()
    mask = np.zeros(size_hw, np.uint8)
    centre = (int(width * rng.uniform(0.45, 0.55)), int(height * rng.uniform(0.45, 0.55)))
    axes = (int(width * rng.uniform(0.2, 0.35)), int(height * rng.uniform(0.25, 0.35)))
    cv2.ellipse(mask, centre, axes, rng.uniform(0, 180), 0, 360, 1, -1)
    ring = mask - cv2.erode(mask, np.ones((3, 3), np.uint8))
    return np.uint8(np.clip(image + 80 * ring, 0, 255)), mask


def image_set(count, *, prefix, seed, size_hw=HW, frames=1, **changes):
    rng = np.random.default_rng(seed)
    pairs = [picture(rng, size_hw) for _ in range(count)]
    content = {
        "sample_ids": [f"{prefix}{i:02d}" for i in range(count)],
        "groups": [f"{prefix}-exam{i // frames:02d}" for i in range(count)],
        "images": [image for image, _ in pairs],
        "masks": [mask for _, mask in pairs],
        "features": rng.normal(size=(count, DIMENSION)).astype(np.float32),
        "agreement": rng.uniform(0.8, 0.95, size=count),
        "cross_entropy": rng.uniform(0.02, 0.2, size=count),
    }
    return FidelitySet(**(content | changes))


def changed(item, **changes):
    return FidelitySet(**({name: getattr(item, name) for name in item.__dict__} | changes))


def real_sets(*, train=24, held_out=30):
    flipped = np.random.default_rng(99).normal(size=(train, DIMENSION)).astype(np.float32)
    return {
        "train": image_set(
            train, prefix="train", seed=1, frames=2, size_hw=(81, 120), features_flipped=flipped
        ),
        "held_out": image_set(held_out, prefix="test", seed=2, size_hw=(81, 120)),
    }


def with_copies(train, *, count=20):
    """A set of which 0 to 2 are copies, 3 a copy of a mirrored image, in features and pixels."""
    synthetic = image_set(count, prefix="syn", seed=3)
    features = synthetic.features.copy()
    features[:3] = train.features[[4, 7, 9]] + [[0.001], [0.002], [0.003]]
    features[3] = train.features_flipped[11] + 0.004
    images = list(synthetic.images)
    for row, name in enumerate((4, 7, 9)):
        images[row] = cv2.resize(train.images[name], HW[::-1], interpolation=cv2.INTER_AREA)
    mirrored = np.ascontiguousarray(train.images[11][:, ::-1])
    images[3] = cv2.resize(mirrored, HW[::-1], interpolation=cv2.INTER_AREA)
    return changed(synthetic, features=features, images=images)


@pytest.fixture(scope="module")
def sets():
    real = real_sets()
    return {"synthetic": with_copies(real["train"]), **real}


@pytest.fixture(scope="module")
def summary(sets):
    return summarise_fidelity(**sets, seed=5)


def shape(block):
    """Keys of a nested dict."""
    return {key: shape(value) for key, value in block.items()} if isinstance(block, dict) else None


def test_the_control_stands_beside_every_measure(summary):
    first, second = (summary[name] for name in BLOCKS)
    assert shape(first) == shape(second)
    assert set(first) >= {"kid", "precision", "recall", "density", "coverage", "nearest"}
    assert set(first) >= {
        "agreement",
        "difficulty",
        "contour_leak",
        "intensity",
        "intensity_distance",
    }
    assert summary["counts"] == {
        "synthetic": {"images": 20, "exams": 20},
        "train": {"images": 24, "exams": 12},
        "held_out": {"images": 30, "exams": 30},
    }


def test_it_passes_through_json_and_repeats_itself(sets, summary):
    text = json.dumps(summary, allow_nan=False)
    assert json.loads(text) == summary
    assert summarise_fidelity(**sets, seed=5) == summary
    other = summarise_fidelity(**sets, seed=6)
    assert other["synthetic_against_train"]["kid"] != summary["synthetic_against_train"]["kid"]


@pytest.mark.parametrize("space", ["features", "pixels"])
def test_planted_copies_are_counted_and_named(summary, space):
    found = summary["synthetic_against_train"]["nearest"][space]
    assert found["copied_images"] == 4
    assert found["copied_fraction"] == pytest.approx(4 / 20)
    assert found["images"] == 20
    control = summary["real_test_against_train"]["nearest"][space]
    assert control["copied_images"] == 1  # the smallest of 30 lies below their first percentile
    assert found["p1"] < control["p1"] == summary["thresholds"]["copied"][space]
    pairs = summary["nearest_pairs"][space]["synthetic"]
    assert len(pairs) == 5
    named = {(p["sample_id"], p["train_id"], p["mirrored"]) for p in pairs[:4]}
    assert named == {
        ("syn00", "train04", False),
        ("syn01", "train07", False),
        ("syn02", "train09", False),
        ("syn03", "train11", True),
    }
    distances = [pair["distance"] for pair in pairs]
    assert distances == sorted(distances)
    assert distances[3] < summary["thresholds"]["copied"][space] <= distances[4]


def test_the_held_out_pairs_are_those_of_a_search_by_hand(sets, summary):
    train, held_out = sets["train"], sets["held_out"]
    rows = np.concatenate([train.features, train.features_flipped])
    table = np.linalg.norm(held_out.features[:, None] - rows[None], axis=2)
    first = summary["nearest_pairs"]["features"]["held_out"][0]
    query, row = np.unravel_index(table.argmin(), table.shape)
    assert first["sample_id"] == held_out.sample_ids[query]
    assert first["train_id"] == train.sample_ids[row % 24]
    assert first["mirrored"] == (row >= 24)
    assert first["distance"] == pytest.approx(table.min(), abs=1e-5)
    found = summary["real_test_against_train"]["nearest"]["features"]
    assert found["median"] == pytest.approx(np.median(table.min(axis=1)), abs=1e-5)


def test_training_images_are_measured_without_their_own_exam(sets, summary):
    train = sets["train"]
    rows = np.concatenate([train.features, train.features_flipped])
    expected, _ = nearest_distance(
        train.features, rows, query_groups=train.groups, training_groups=[*train.groups] * 2
    )
    assert expected.min() > 0
    found = summary["train"]["nearest"]["features"]
    assert found["median"] == pytest.approx(np.median(expected))


def test_both_rows_are_of_one_size(sets, summary):
    settings = summary["settings"]
    assert settings["matched_images"] == 20
    assert settings["kid_subset_size"] == 10
    assert settings["k"] == 5
    train, synthetic, held_out = (sets[name] for name in ("train", "synthetic", "held_out"))
    # The synthetic set is the smaller one and is used whole.
    found = summary["synthetic_against_train"]
    expected = precision_recall_density_coverage(train.features, synthetic.features, k=5)
    names = ("precision", "recall", "density", "coverage")
    assert [found[name] for name in names] == pytest.approx(expected)
    # The control is averaged over subsets of 20 of its 30; recall grows with their number.
    whole = precision_recall_density_coverage(train.features, held_out.features, k=5)
    control = summary["real_test_against_train"]
    assert control["precision"] == pytest.approx(whole[0], abs=0.1)
    assert control["density"] == pytest.approx(whole[2], abs=0.1)
    assert control["coverage"] <= whole[3]
    for block, item in ((found, synthetic), (control, held_out)):
        full = polynomial_mmd(train.features, item.features)
        assert block["kid"]["mean"] == pytest.approx(full, abs=4 * block["kid"]["sd"] / 10)


def test_agreement_and_its_chance_level(sets, summary):
    for block, name in zip(BLOCKS, ("synthetic", "held_out"), strict=True):
        found = summary[block]["agreement"]
        assert found["mean"] == pytest.approx(sets[name].agreement.mean())
        masks = sets[name].masks
        unrelated = [mask_agreement([a], [b])[0] for a in masks for b in masks if a is not b]
        # A random pairing's mean lies near that of all pairs.
        assert found["chance"] == pytest.approx(np.mean(unrelated), abs=0.06)


def test_difficulty_is_the_mean_and_the_median_of_each_set(sets):
    losses = np.linspace(0, 1, 20) ** 2
    synthetic = changed(sets["synthetic"], cross_entropy=losses)
    found = summarise_fidelity(**(sets | {"synthetic": synthetic}), seed=0)
    expected = {"mean": losses.mean(), "median": (losses[9] + losses[10]) / 2}
    assert found["synthetic_against_train"]["difficulty"] == pytest.approx(expected)
    for block, name in (("real_test_against_train", "held_out"), ("train", "train")):
        of_set = sets[name].cross_entropy
        expected = {"mean": of_set.mean(), "median": np.median(of_set)}
        assert found[block]["difficulty"] == pytest.approx(expected)


def test_a_label_drawn_into_the_images_leaks(sets):
    synthetic = sets["synthetic"]
    drawn = [
        np.uint8(np.clip(image.astype(int) + 90 * mask, 0, 255))
        for image, mask in zip(synthetic.images, synthetic.masks, strict=True)
    ]
    clean = summarise_fidelity(**sets, seed=0, pixel_hw=HW)
    leaking = summarise_fidelity(
        **(sets | {"synthetic": changed(synthetic, images=drawn)}), seed=0, pixel_hw=HW
    )
    before, after = (s["synthetic_against_train"]["contour_leak"] for s in (clean, leaking))
    assert after["median"] > 1.3 * before["median"]
    assert after["share_above_train"] > before["share_above_train"]
    assert after["p5"] <= after["median"] <= after["p95"]
    control = "real_test_against_train"
    assert clean[control]["contour_leak"] == leaking[control]["contour_leak"]
    assert clean[control]["contour_leak"]["share_above_train"] < 0.3


def test_intensity_is_measured_at_one_small_size(sets):
    """The same picture with fine noise at the original size counts as the same."""
    train = sets["train"]
    size = tuple(2 * side for side in train.images[0].shape)
    rng = np.random.default_rng(0)
    large = [
        np.uint8(np.clip(cv2.resize(i, size[::-1]) + rng.normal(0, 25, size), 0, 255))
        for i in train.images
    ]
    masks = [cv2.resize(m, size[::-1], interpolation=cv2.INTER_NEAREST) for m in train.masks]
    noisy = changed(train, images=large, masks=masks, features_flipped=None)
    found = summarise_fidelity(**(sets | {"synthetic": noisy}), seed=0, pixel_hw=(18, 27))
    assert found["settings"]["pixel_hw"] == [18, 27]
    spread = found["synthetic_against_train"]["intensity"]["spread"]["mean"]
    assert spread == pytest.approx(found["train"]["intensity"]["spread"]["mean"], rel=0.1)
    assert np.mean([image.std() for image in large]) / 255 > 1.3 * spread
    assert found["synthetic_against_train"]["intensity_distance"]["mean"] < 0.02


def test_brighter_images_are_farther_from_training(sets):
    synthetic = sets["synthetic"]
    bright = [np.uint8(np.minimum(image.astype(int) + 51, 255)) for image in synthetic.images]
    found = summarise_fidelity(**(sets | {"synthetic": changed(synthetic, images=bright)}), seed=0)
    ours, control = (found[name]["intensity_distance"]["mean"] for name in BLOCKS)
    assert ours == pytest.approx(0.2, abs=0.03)  # 51 / 255
    assert control < 0.03


def test_the_table_has_a_cell_for_every_measure(summary):
    frame = fidelity_rows(json.loads(json.dumps(summary)))
    assert list(frame.columns) == [
        "measure",
        "synthetic",
        "real test (control)",
        "reading direction",
    ]
    cells = frame.set_index("measure")
    assert list(cells.index) == [
        *("images", "KID", "precision", "recall", "density", "coverage"),
        *("copied, by features", "distance to training, by features"),
        *("copied, by pixels", "distance to training, by pixels"),
        *("label agreement", "difficulty", "contour leak", "brightness", "contrast"),
    ]
    assert cells.loc["images", "synthetic"] == "20"
    assert cells.loc["images", "real test (control)"] == "30 of 30 exams"
    assert cells.loc["copied, by features", "synthetic"] == "20.0 % (4 of 20)"
    assert cells.loc["copied, by features", "real test (control)"] == "3.3 % (1 of 30)"
    limit = summary["thresholds"]["copied"]["features"]
    assert f"nearer than {limit:.3g}" in cells.loc["copied, by features", "reading direction"]
    warned = cells["reading direction"].str.contains("a blurred copy is not found so")
    assert list(cells.index[warned]) == ["copied, by features"]
    agreement = summary["synthetic_against_train"]["agreement"]
    expected = f"{agreement['mean']:.3g} (chance {agreement['chance']:.3g})"
    assert cells.loc["label agreement", "synthetic"] == expected
    hard = {name: summary[name]["difficulty"] for name in (*BLOCKS, "train")}
    texts = {name: f"{d['mean']:.3g} ({d['median']:.3g})" for name, d in hard.items()}
    assert cells.loc["difficulty", "synthetic"] == texts[BLOCKS[0]]
    assert cells.loc["difficulty", "real test (control)"] == texts[BLOCKS[1]]
    assert cells.loc["difficulty", "reading direction"].endswith(f"images {texts['train']}")
    assert "64x96 px" in cells.loc["brightness", "reading direction"]
    assert all(isinstance(cell, str) and cell for row in frame.to_numpy() for cell in row)
    assert "–" not in {cell for row in frame.to_numpy() for cell in row}


@pytest.mark.parametrize("count", [1, 4])
def test_a_handful_of_images_gives_none_with_a_reason(sets, count):
    few = image_set(count, prefix="syn", seed=3)
    found = summarise_fidelity(**(sets | {"synthetic": few}), seed=0)
    json.dumps(found, allow_nan=False)
    block, control = (found[name] for name in BLOCKS)
    for name in ("kid", "precision", "recall", "density", "coverage"):
        assert block[name] is None
        assert control[name] is not None
    agreement = few.agreement.mean()
    assert block["agreement"] == {"mean": agreement, "chance": None}
    assert control["agreement"]["chance"] > 0
    assert any(
        note.startswith(f"synthetic against train: {count} images") for note in found["notes"]
    )
    assert len(found["nearest_pairs"]["features"]["synthetic"]) == count
    cells = fidelity_rows(found).set_index("measure")["synthetic"]
    assert cells["KID"] == cells["recall"] == "–"
    assert cells["label agreement"] == f"{agreement:.3g} (chance –)"
    assert block["nearest"]["pixels"]["images"] == count
    assert block["intensity"]["mean"]["p50"] > 0


def test_without_held_out_images_nothing_is_called_a_copy(sets):
    few = image_set(4, prefix="test", seed=2)
    found = summarise_fidelity(**(sets | {"held_out": few}), seed=0)
    assert found["thresholds"]["copied"] == {"features": None, "pixels": None}
    assert found["synthetic_against_train"]["nearest"]["features"]["copied_images"] is None
    assert found["synthetic_against_train"]["nearest"]["features"]["median"] > 0
    assert any(note.startswith("copied fraction: 4 held-out images") for note in found["notes"])


def test_limits_are_said(sets, summary):
    text = " ".join(summary["notes"])
    assert "with 30 held-out images the first percentile" in text
    assert "dimensions" not in text  # 12 for 20 images
    wide = {
        name: changed(item, features=np.tile(item.features, 3), features_flipped=None)
        for name, item in sets.items()
    }
    text = " ".join(summarise_fidelity(**wide, seed=0)["notes"])
    assert "36 dimensions for 24 training and 20 compared images" in text


def test_masks_without_a_contour_are_counted(sets):
    synthetic = sets["synthetic"]
    masks = [np.zeros(HW, np.uint8), *synthetic.masks[1:]]
    found = summarise_fidelity(**(sets | {"synthetic": changed(synthetic, masks=masks)}), seed=0)
    assert "synthetic: 1 of 20 images have no contour-leak score" in found["notes"]
    assert found["synthetic_against_train"]["contour_leak"]["median"] > 0


def test_features_of_different_spaces_are_refused(sets):
    other = changed(sets["synthetic"], features=sets["synthetic"].features[:, :5])
    with pytest.raises(ValueError, match="features are"):
        summarise_fidelity(**(sets | {"synthetic": other}), seed=0)
