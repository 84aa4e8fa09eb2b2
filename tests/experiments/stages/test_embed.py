"""The stage that embeds: what is kept once, what a view is, and what is embedded again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from folder_parts import write_hc18_folder
from stage_parts import Stages

from datamodules.annotation import read_annotation, read_image
from datamodules.augment import augment_view
from datamodules.embeddings import open_embeddings
from datamodules.geometry import image_to_frame, mask_to_frame, place
from datamodules.samples import content_hash_of, hash_as_read
from datamodules.synthetic import read_synthetic, write_pair
from experiments.plan.stage_table import STAGES
from experiments.runner.sweep import next_batch_parts
from experiments.runner.worker import run_held
from experiments.stages import embed as embed_module
from experiments.stages.embed import run_embed
from experiments.store.runs import read_failure
from lightning_modules.randomness import keyed_seed
from lightning_modules.segmenters.sam.network import build_sam, encode

IDS = ["001_HC", "004_2HC", "007_HC"]
FRAME = place((54, 80), frame_hw=(64, 64), mode="pad")
VALID = (43, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hc18_folder(tmp_path_factory.mktemp("embed") / "hc18")


@pytest.fixture
def stages(folder, tmp_path):
    return Stages(folder, tmp_path / "runs")


def embed(stages, ids=IDS, *, strength=None, n_views=3, encoder="tiny", **upstream):
    content = {"encoder": {"backbone": encoder}}
    if not upstream:
        content["images"] = stages.contents(ids)
    if strength is not None:
        content["augment"] = {"strength": strength, "n_views": n_views}
    return stages.run(run_embed, "embed", content, **upstream)


def frame_of(stages, sample_id):
    """The image and the mask in the frame, before any view."""
    sample = stages.data.samples[sample_id]
    mask = read_annotation(sample.annotation_path, filled_bias_px=sample.filled_bias_px).mask
    return image_to_frame(read_image(sample.image_path), FRAME), mask_to_frame(mask, FRAME)


def encoded(stages, frame):
    image = torch.from_numpy(frame.astype(np.float32) / 255)[None, None]
    valid_hw = torch.tensor([VALID])
    sam = build_sam(stages.config.segmenter)
    return encode(sam, image, valid_hw=valid_hw, precision="fp32")[0].numpy()


def close(a, b):
    return np.abs(a.astype(float) - b.astype(float)).max() < 2e-3


def test_an_embedding_is_the_encoders_of_its_image(stages):
    context, result = embed(stages)
    assert result == {"images": 3, "embedded": 3}
    found = open_embeddings(context.run_dir, store=context.embeddings)
    for sample_id in IDS:
        assert close(found[sample_id], encoded(stages, frame_of(stages, sample_id)[0]))
    assert not close(found[IDS[0]], found[IDS[1]])


def test_out_of_memory_the_images_are_embedded_fewer_at_once(stages, monkeypatch):
    content = {"encoder": {"backbone": "tiny"}, "images": stages.contents(IDS)}
    context, sizes = stages.context("embed", content), []

    def small(sam, image, **settings):
        sizes.append(len(image))
        if len(image) > 2:
            raise MemoryError
        return encode(sam, image, **settings)

    monkeypatch.setitem(embed_module.BATCH, "cpu", embed_module.BATCH["cuda"])
    monkeypatch.setattr(embed_module, "encode", small)
    assert run_held(context, threads=1) == 1
    assert read_failure(context.run_dir).kind == "out_of_memory"
    limit = STAGES["embed"].batch_size(content=content, config=stages.config)
    assert next_batch_parts(1, limit=limit) == 2
    assert run_held(replace(context, batch_parts=8), threads=1) == 0
    assert sizes == [3, 2, 1]


def test_an_image_is_embedded_once_whatever_asks_for_it(stages):
    assert embed(stages)[1]["embedded"] == 3
    assert embed(stages, IDS[1:])[1] == {"images": 2, "embedded": 0}
    more, result = embed(stages, ["002_HC", *IDS])
    assert result == {"images": 4, "embedded": 1}
    # A set names its own images alone, each by one key.
    keys = json.loads((more.run_dir / "embeddings.json").read_text())
    assert {name: len(each) for name, each in keys.items()} == dict.fromkeys(["002_HC", *IDS], 1)
    # Another encoder is another embedding, and so is another image under the name.
    assert embed(stages, encoder="other")[1]["embedded"] == 3
    context = stages.context("embed", {"images": stages.contents(IDS), "encoder": {"b": 1}})
    # Read in another way, it has another hash.
    sample = stages.data.samples[IDS[0]]
    context.content = context.content | {IDS[0]: hash_as_read(content_hash_of(sample), sample)}
    assert run_embed(context)["embedded"] == 3


def test_a_lost_file_is_made_again_and_no_other(stages):
    context, _ = embed(stages, strength="weak")
    keys = json.loads((context.run_dir / "embeddings.json").read_text())
    store = context.embeddings
    before = store.read_view(keys[IDS[0]][2])
    (store.root / keys[IDS[0]][2][:2] / f"{keys[IDS[0]][2]}.view.npy").unlink()
    store.path(keys[IDS[1]][0]).unlink()
    assert embed(stages, strength="weak")[1]["embedded"] == 2
    assert np.array_equal(np.stack(store.read_view(keys[IDS[0]][2])), np.stack(before))
    assert embed(stages, strength="weak")[1]["embedded"] == 0


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_a_view_has_the_mask_of_its_own_picture(stages, strength):
    """Image and mask are one draw of the augmentation, and the embedding is of that image."""
    context, result = embed(stages, strength=strength)
    assert result == {"images": 3, "embedded": 9}
    found = open_embeddings(context.run_dir, store=context.embeddings)
    moved = []
    for sample_id in IDS:
        frame, label = frame_of(stages, sample_id)
        assert close(found[sample_id], encoded(stages, frame)), "view 0 is the image itself"
        for view in (1, 2):
            seed = keyed_seed("view", strength, view, stages.data.content[sample_id])
            image, mask = augment_view(frame[:43], label[:43], strength=strength, seed=seed)
            embedding, kept_image, kept_mask = found.view(sample_id, view)
            assert np.array_equal(kept_image[:43], image)
            assert np.array_equal(kept_mask[:43], mask)
            assert not kept_image[43:].any(), "the padding stays black"
            assert not kept_mask[43:].any()
            assert close(embedding, encoded(stages, kept_image))
            moved.append((kept_mask != label).mean() > 0.01)
    assert any(moved), "the box is not that of the image as it was"


def test_views_are_the_same_in_every_trial(stages):
    """A view hangs on its image and number, never on what it is embedded together with."""
    all_of, _ = embed(stages, strength="strong")
    few, result = embed(stages, IDS[2:], strength="strong", n_views=5)
    assert result == {"images": 1, "embedded": 2}
    keys = [json.loads((c.run_dir / "embeddings.json").read_text()) for c in (all_of, few)]
    assert keys[1][IDS[2]][:3] == keys[0][IDS[2]]
    assert len({key for each in keys[0].values() for key in each}) == 9


def test_the_mirrored_view_is_the_mirrored_image(stages):
    context, _ = embed(stages, strength="mirror", n_views=2)
    found = open_embeddings(context.run_dir, store=context.embeddings)
    for sample_id in IDS:
        frame, label = frame_of(stages, sample_id)
        _, image, mask = found.view(sample_id, 1)
        assert np.array_equal(image[:43], frame[:43, ::-1])
        assert np.array_equal(mask[:43], label[:43, ::-1])
        assert not image[43:].any()


def test_pairs_of_a_set_are_embedded_by_their_content(stages):
    key = stages.context("warp", {"a": 1}).node.key
    root = stages.store.root / "store" / key
    for number in range(2):
        image, mask = (part[:54] for part in frame_of(stages, IDS[number]))
        write_pair(root, f"made-{number}", image=image, mask=mask)
    context, result = embed(stages, pairs=key)
    assert result == {"images": 2, "embedded": 2}
    names = json.loads((context.run_dir / "embeddings.json").read_text())
    assert list(names) == ["made-0", "made-1"]
    # The same pictures under another stage, as a gate links them, are known already.
    gate = stages.context("gate", {"a": 1}).node.key
    for sample in read_synthetic(root).samples:
        for old in (sample.image_path, sample.annotation_path):
            new = stages.store.root / "store" / gate / old.relative_to(root)
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(old.read_bytes())
    again, result = embed(stages, pairs=gate)
    assert result == {"images": 2, "embedded": 0}
    assert json.loads((again.run_dir / "embeddings.json").read_text()) == names
