"""`sonosweep draw`: pairs from a generator alone, and where they must not be trained on."""

from types import SimpleNamespace

import numpy as np
import pytest
from deliver_parts import write_generator
from toy_recipe import TOY

from datamodules.annotation import annotation_of, image_of
from datamodules.ellipse import rasterise
from datamodules.errors import InputError
from datamodules.synthetic import read_synthetic
from experiments.config.recipe import load_config
from experiments.stages.data import load_data
from experiments.stages.generator import images_behind

SIZE = ("--height", "48", "--width", "72")


@pytest.fixture
def config(hc18_folder, tmp_path):
    changes = ["data.subset.n_images=null", "split.test=4", "split.val=2", "split.train=null"]
    return load_config(
        TOY, [*changes, f"data.root={hc18_folder}", f"store.root={tmp_path / 'runs'}"]
    )


@pytest.fixture
def generator_on(config, tmp_path):
    """Write the run of a generator that was fitted on these images of the data."""

    def write(ids, *, name="gen"):
        data = load_data(config)
        context = SimpleNamespace(
            samples=data.samples,
            rows=data.rows,
            content=data.content,
            node=SimpleNamespace(upstream={}),
        )
        images = images_behind(context, list(ids))
        return write_generator(tmp_path / "generator" / name, images)

    return write


def test_a_set_is_drawn_without_the_data_and_compact_draws_the_same(
    sonosweep, generator_on, config, hc18_folder, tmp_path
):
    train = load_data(config).split.train
    run_dir, compact = generator_on(train), tmp_path / "compact"
    assert sonosweep("export", run_dir, "--format", "compact", "--out", compact)[0] == 0
    hc18_folder.rename(tmp_path / "elsewhere")
    sets = {}
    for name, source, seed in (("a", run_dir, 3), ("b", compact, 3), ("c", run_dir, 4)):
        words = ("draw", source, "--n", 3, "--seed", seed, *SIZE, "--out", tmp_path / name)
        code, printed, _ = sonosweep(*words)
        assert code == 0
        assert f"synthesis.folder_labels={len(train)}" in printed
        sets[name] = read_synthetic(tmp_path / name)
    images = {k: np.stack([image_of(s) for s in found.samples]) for k, found in sets.items()}
    assert images["a"].shape == (3, 48, 72)
    # Half precision moves grey levels by little; another seed draws other images.
    assert np.abs(images["a"].astype(int) - images["b"]).max() <= 4
    assert np.abs(images["a"].astype(int) - images["c"]).mean() > 8
    for sample in sets["a"].samples:
        drawn = rasterise(sets["a"].pairs[sample.sample_id].ellipse, size_hw=(48, 72))
        assert np.array_equal(annotation_of(sample).mask, drawn)


def test_a_set_does_not_train_where_its_generator_saw_the_test(
    sonosweep, generator_on, config, tmp_path
):
    split = load_data(config).split
    for name, ids in (("clean", split.train), ("leaky", [*split.train, split.test[0]])):
        words = ("--n", 2, *SIZE, "--out", tmp_path / name)
        assert sonosweep("draw", generator_on(ids, name=f"{name}-run"), *words)[0] == 0
    config.synthesis.folder = str(tmp_path / "clean")
    assert len(load_data(config).foreign_pairs) == 2
    config.synthesis.folder = str(tmp_path / "leaky")
    with pytest.raises(InputError, match=rf"fitted on 1 of \d+ test images \({split.test[0]}"):
        load_data(config)
    (tmp_path / "leaky" / "origin.json").write_text("{}")
    with pytest.raises(InputError, match=r"origin.json: expected JSON with `images_seen`"):
        load_data(config)


def test_the_packages_generator_draws_and_keeps_away_from_hc18(sonosweep, real_hc18_root, tmp_path):
    assert sonosweep("draw", "--n", 1, *SIZE, "--out", tmp_path / "pairs")[0] == 0
    changes = ["data.subset.n_images=12", "split.test=4", "split.val=2", "split.train=null"]
    places = [f"data.root={real_hc18_root}", f"store.root={tmp_path / 'runs'}"]
    config = load_config(TOY, [*changes, *places, f"synthesis.folder={tmp_path / 'pairs'}"])
    with pytest.raises(InputError, match=r"fitted on \d+ of 4 test images"):
        load_data(config)


def test_what_cannot_draw_is_said_in_a_line(sonosweep, generator_on, config, tmp_path):
    run_dir = generator_on(load_data(config).split.train)
    (run_dir / "generator" / "images.json").unlink()
    export = ("export", run_dir, "--format", "compact", "--out")
    for command in (("draw", run_dir, "--out"), export):
        code, printed, err = sonosweep(*command, tmp_path / "new")
        assert (code, printed) == (2, "")
        assert "images.json" in err
        assert err.count("\n") == 1
    (tmp_path / "there").mkdir()
    code, _, err = sonosweep("draw", run_dir, "--out", tmp_path / "there")
    assert (code, "there" in err) == (2, True)
