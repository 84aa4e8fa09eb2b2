"""A synthetic set as an image folder with card and Croissant, read back as others would."""

import json
from dataclasses import replace

import cv2
import mlcroissant
import numpy as np
import pytest
import yaml
from rich.console import Console

from datamodules.attribution import HC18_LICENCE
from datamodules.ellipse import Ellipse, rasterise
from datamodules.errors import InputError
from datamodules.phantom import write_phantom
from datamodules.storage import file_sha256
from datamodules.synthetic import (
    SyntheticPair,
    pair_paths,
    read_synthetic,
    seen_pixels,
    write_metadata,
    write_pair,
)
from experiments.deliver.export import export_command
from experiments.store.runs import write_done, write_started

SIZE_HW = (54, 80)
LABELS = [["001_HC", "x"], ["002_2HC", "y"]]
NO_DATA = {"data": {"root": None}}


def export_dataset(run_dir, out):
    export_command(run_dir, format_name="dataset", out=out, console=Console(quiet=True))


def write_set(store, stage, run_id, *, n=3, content=None, upstream=None, result=None, drawn=True):
    """A finished set as its stage leaves it; `drawn` by a generator with seeds, or not."""
    folder = store / stage / run_id
    folder.mkdir(parents=True)
    write_run(folder, stage, content=content, upstream=upstream)
    rng, pairs = np.random.default_rng(5), []
    for number in range(n):
        ellipse = Ellipse(
            center_x_px=38.5 + number,
            center_y_px=26,
            semi_major_px=20,
            semi_minor_px=14,
            theta_rad=0.2,
        )
        pair = SyntheticPair(sample_id=f"abc-{number:05d}", ellipse=ellipse)
        if drawn:
            # The largest seed that there is: JSON readers like to make a float of it.
            pair = replace(pair, seed=2**63 - 1 - number, generator_id="9" * 16)
        image = rng.integers(0, 256, SIZE_HW, dtype=np.uint8)
        write_pair(folder, pair.sample_id, image=image, mask=rasterise(ellipse, size_hw=SIZE_HW))
        pairs.append(pair)
    write_metadata(folder / "metadata.jsonl", pairs)
    write_done(folder, result or {})
    return folder


def write_run(folder, stage, *, content=None, upstream=None, config=None):
    """A manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "stage": stage,
        "id": folder.name,
        "content": content or {},
        "upstream": upstream or {},
        "config": config or NO_DATA,
        "sweep": "test",
        "started": 1_780_000_000.0,
        "git_sha": "abc",
        "versions": {"sonosweep": "0.1.0"},
    }
    write_started(folder, manifest)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "runs" / "store"


def gated(store, **changes):
    """A gate's set with the runs behind it."""
    write_run(
        store / "generator" / "9999", "generator", content={"images": LABELS, "seed": 3, "g": {}}
    )
    write_run(
        store / "synthesize" / "8888",
        "synthesize",
        content={"seed": 3},
        upstream={"generator": "generator/9999"},
    )
    return write_set(
        store,
        "gate",
        "0123456789abcdef",
        content={"images": LABELS},
        upstream={"candidates": "synthesize/8888", "segmenter": "fit/not-there"},
        result={"accepted": 3, "rejected": 5},
        **changes,
    )


def card_of(out):
    """Front matter and text of a card."""
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_folder_is_a_synthetic_set_again(store, tmp_path):
    run_dir, out = gated(store), tmp_path / "new" / "out"
    (store / "generator" / "9999" / "generator").mkdir()
    images = store / "generator" / "9999" / "generator" / "images.json"
    images.write_text(json.dumps([{"pixels_sha256": "ab"}, {"pixels_sha256": "cd"}]))
    export_dataset(run_dir, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "croissant.json",
        "image",
        "mask",
        "metadata.jsonl",
        "origin.json",
    ]
    assert seen_pixels(out) == {"ab", "cd"}
    before, after = read_synthetic(run_dir), read_synthetic(out)
    assert after.pairs == before.pairs
    assert len(after.samples) == 3
    for sample in before.samples:
        for old, new in zip(
            pair_paths(run_dir, sample.sample_id), pair_paths(out, sample.sample_id), strict=True
        ):
            assert new.read_bytes() == old.read_bytes()
            assert new.stat().st_ino != old.stat().st_ino


def test_a_croissant_reader_gets_every_pair(store, tmp_path):
    export_dataset(gated(store), tmp_path / "out")
    path = tmp_path / "out" / "croissant.json"
    dataset = mlcroissant.Dataset(path)
    assert not dataset.metadata.ctx.issues.errors
    found = {text(record["pairs/sample_id"]): record for record in dataset.records("pairs")}
    masks = {text(record["masks/sample_id"]): record for record in dataset.records("masks")}
    pairs = read_synthetic(tmp_path / "out").pairs
    assert sorted(found) == sorted(masks) == sorted(pairs) == [f"abc-0000{n}" for n in range(3)]
    for sample_id, record in found.items():
        image_path, mask_path = pair_paths(tmp_path / "out", sample_id)
        # Pillow gives RGB; the three channels are the one of the file.
        image, mask = np.array(record["pairs/image"]), np.array(masks[sample_id]["masks/mask"])
        assert np.array_equal(image[..., 0], cv2.imread(str(image_path), cv2.IMREAD_GRAYSCALE))
        assert np.array_equal(mask[..., 2], cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE))
        assert record["pairs/seed"] == pairs[sample_id].seed
        assert record["pairs/center_x_px"] == pairs[sample_id].ellipse.center_x_px
        assert record["pairs/theta_rad"] == 0.2
    described = json.loads(path.read_text())
    assert described["license"] == "https://creativecommons.org/licenses/by/4.0/"
    assert HC18_LICENCE in described["citeAs"]
    assert described["datePublished"] == "2026-05-28"
    (metadata,) = [d for d in described["distribution"] if d["@id"] == "metadata.jsonl"]
    assert metadata["sha256"] == file_sha256(tmp_path / "out" / "metadata.jsonl")


def text(value):
    """mlcroissant gives text as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def test_the_card_says_where_it_comes_from(store, tmp_path):
    export_dataset(gated(store), tmp_path / "out")
    front, words = card_of(tmp_path / "out")
    assert front["license"] == "cc-by-4.0"
    assert front["task_categories"] == ["image-segmentation"]
    assert front["size_categories"] == ["n<1K"]
    assert "synthetic" in front["tags"]
    for row in (
        "| pairs | 3 |",
        "| run | gate/0123456789abcdef |",
        "| sonosweep | 0.1.0, commit abc |",
        "| labelled images behind it | 2 |",
        "| generator | generator/9999 |",
        "| base model | none: trained from random weights on these images alone |",
        "| seeds | generator 3, synthesize 3 |",
        "| gate | accepted 3 of 8 |",
    ):
        assert row + "\n" in words
    assert "80 x 54 px (width x height)" in words
    assert HC18_LICENCE in words
    assert "**Not for diagnosis.**" in words


def test_the_card_names_the_code_of_an_installed_package(store, tmp_path):
    run_dir = gated(store)
    manifest = json.loads((run_dir / "manifest.json").read_text())
    write_started(run_dir, manifest | {"git_sha": None, "installed": "0.1.0, files 0a1b"})
    export_dataset(run_dir, tmp_path / "out")
    assert "| sonosweep | 0.1.0, code 0.1.0, files 0a1b |\n" in card_of(tmp_path / "out")[1]


@pytest.mark.parametrize(
    ("base_model", "shown"),
    [("/data/secret/sd15.safetensors", "sd15.safetensors"), ("acme/sd-1-5", "acme/sd-1-5")],
)
def test_the_base_model_is_that_of_the_generators_own_block(store, tmp_path, base_model, shown):
    """By the name of its file; the path on this machine is nobody's business."""
    run_dir, generator = gated(store), store / "generator" / "9999"
    content = {"stable_diffusion": {"route": "sd_mask", "lora_rank": 16}, "base_id": "beef"}
    config = {**NO_DATA, "stable_diffusion": {"base_model": "another/one"}}
    content |= {"images": LABELS, "seed": 3}
    write_run(generator, "generator", content=content, config=config)
    (generator / "generator").mkdir()
    saved = {"config": {"base_model": base_model}, "seed": 3, "base_id": "beef", "prompts": []}
    (generator / "generator" / "generator.json").write_text(json.dumps(saved))
    export_dataset(run_dir, tmp_path / "out")
    _, words = card_of(tmp_path / "out")
    assert f"| base model | {shown}, content id beef; its own licence" in words
    assert "| route | sd_mask, LoRA of rank 16 |" in words
    assert "secret" not in words


def test_metadata_holds_no_column_that_nothing_fills(store, tmp_path):
    run_dir = write_set(store, "warp", "77", content={"images": LABELS, "seed": 4}, drawn=False)
    export_dataset(run_dir, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").open()]
    assert list(rows[0]) == ["file_name", "mask_file_name", "sample_id", "ellipse"]
    assert rows[1]["file_name"] == "image/abc-00001.png"
    assert rows[1]["mask_file_name"] == "mask/abc-00001_Annotation.png"
    dataset = mlcroissant.Dataset(tmp_path / "out" / "croissant.json")
    assert len(list(dataset.records("pairs"))) == 3
    _, words = card_of(tmp_path / "out")
    assert "each image is a real one, deformed" in words
    assert "| seeds | warp 4 |" in words


def test_licence_follows_the_images_behind_the_set(store, tmp_path):
    others = [["P1_Plane", "x"]]
    write_phantom(tmp_path / "procedural", n_exams=3, seed=0)
    config = {"data": {"root": str(tmp_path / "procedural")}}
    cases = {
        "hc18": ("phantom", {"images": LABELS}, NO_DATA, "cc-by-4.0", HC18_LICENCE),
        "other": ("warp", {"images": others}, NO_DATA, "unknown", "another source than HC18"),
        "phantom": ("warp", {"images": LABELS}, config, "unknown", "procedural phantoms, which"),
        "foreign": ("import_pairs", {"pairs": []}, NO_DATA, "unknown", "owner of the imported"),
    }
    for name, (stage, content, settings, licence, words) in cases.items():
        run_dir = write_set(store, stage, name, content=content, drawn=False)
        write_run(run_dir, stage, content=content, config=settings)
        out = tmp_path / name
        export_dataset(run_dir, out)
        front, text_ = card_of(out)
        assert front["license"] == licence
        assert words in text_
        assert (HC18_LICENCE in text_) == (name == "hc18")
        assert ("license" in json.loads((out / "croissant.json").read_text())) == (name == "hc18")


def test_subset_is_followed_to_the_labels(store, tmp_path):
    gated(store)
    run_dir = write_set(
        store,
        "subset",
        "5555",
        content={"seed": 3},
        upstream={"candidates": "synthesize/8888", "gate": "gate/0123456789abcdef"},
    )
    export_dataset(run_dir, tmp_path / "out")
    front, words = card_of(tmp_path / "out")
    assert front["license"] == "cc-by-4.0"
    assert "| labelled images behind it | 2 |" in words
    assert "| generator | generator/9999 |" in words


def remove(path):
    (path / "DONE.json" if path.is_dir() else path).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda store, _: remove(store / "generator/9999/manifest.json"),
            "missing, and says what ",
        ),
        (lambda _, run_dir: remove(run_dir), "not finished; run the sweep to its end"),
        (lambda _, run_dir: remove(pair(run_dir)[1]), "missing, or no image; make the run again"),
        (lambda _, run_dir: pair(run_dir)[0].write_text("no picture"), "missing, or no image"),
        (
            lambda _, run_dir: cv2.imwrite(str(pair(run_dir)[0]), np.zeros((10, 10), np.uint8)),
            "image and mask of abc-00001 differ in size",
        ),
        (
            lambda _, run_dir: (run_dir / "metadata.jsonl").write_text(""),
            "an empty synthetic set; nothing to export",
        ),
        (
            lambda _, run_dir: write_run(run_dir, "resize"),
            "a run of stage resize, no synthetic set; give one of stage gate, synthesize, ",
        ),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(store, tmp_path, damage, message):
    run_dir = gated(store)
    damage(store, run_dir)
    with pytest.raises(InputError) as caught:
        export_dataset(run_dir, tmp_path / "new" / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def pair(run_dir):
    return pair_paths(run_dir, "abc-00001")


def test_the_command(sonosweep, store, tmp_path):
    code, printed, _ = sonosweep(
        "export", gated(store), "--format", "dataset", "--out", tmp_path / "out"
    )
    assert (code, "dataset" in printed) == (0, True)
    assert len(read_synthetic(tmp_path / "out").samples) == 3


def test_context_is_the_published_one(store, tmp_path):
    from mlcroissant._src.core.rdf import make_context

    export_dataset(gated(store), tmp_path / "out")
    described = json.loads((tmp_path / "out" / "croissant.json").read_text())
    assert described["@context"] == make_context()
    assert described["version"] == "1.0.0"
