"""Recipes and overrides: what is merged, and how a wrong word is refused."""

import pytest
import yaml
from toy_recipe import TOY

from datamodules.errors import InputError
from experiments.config.escaping import escaped
from experiments.config.recipe import RECIPES, load_config
from experiments.config.schema import ExperimentConfig, resolved


def test_defaults_recipe_and_overrides_merge_in_that_order(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: mine\nsegmenter: {steps: 7, batch_size: 2}\n")
    config = load_config(str(recipe), ["segmenter.steps=9", "sweep.real_fraction=[0.5]"])
    assert isinstance(config, ExperimentConfig)
    assert (config.name, config.segmenter.steps, config.segmenter.batch_size) == ("mine", 9, 2)
    assert config.sweep.real_fraction == [0.5]
    assert config.segmenter.backbone == "lite"


def test_tuples_stay_tuples_and_numbers_take_scientific_notation():
    config = load_config(None, ["generator.size_hw=[32,48]", "segmenter.learning_rate=1e-4"])
    assert config.generator.size_hw == (32, 48)
    assert config.segmenter.learning_rate == pytest.approx(1e-4)


@pytest.mark.parametrize(
    "text",
    ["/data/set #2", "/data/${x}/a", "/data/a: b", "/data/*", "012", "0x10", "1_000", "true", "~",
     "/a\\${x}", "[a]", "{a", "/data/a #", "- a", "!x", "&a", "@a", "on", "2026-01-01", " a "],
)  # fmt: skip
def test_a_path_is_taken_as_typed(text, tmp_path):
    config = load_config(None, [f"data.root={text}", f"store.root={text}"])
    assert (config.data.root, config.store.root) == (text, text)
    # What a sweep keeps of its recipe reads as the same.
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(escaped(resolved(config))))
    assert load_config(str(copy), []) == config
    if not {"[", "{", "#", ":", "-", "*", "!", "&", "@", " ", "~"} & set(text):
        listed = load_config(None, [f"data.test_cohorts=[{text}]"])
        assert listed.data.test_cohorts == [text]


@pytest.mark.parametrize("name", ["012", "0x10", "1_000", "true", "null", "1e3", "2026-01-01"])
def test_a_name_is_taken_as_typed(name):
    assert load_config(None, [f"name={name}"]).name == name
    assert load_config(None, [f"name='{name}'"]).name == name


def test_no_text_is_null_where_there_may_be_none(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {root: /data}\n")
    assert load_config(str(recipe), ["data.root=null"]).data.root is None
    assert load_config(str(recipe), ["data.root='null'"]).data.root == "null"
    assert load_config(None, ["split.train=null"]).split.train is None


def test_a_blocks_texts_are_whole():
    blocks = ["segmenters.mine.kind=sam", "segmenters.mine.weights_path=/w/a #2 ${x}"]
    config = load_config(None, [*blocks, "sweep.segmenter=[mine]"])
    assert config.segmenter_named("mine").weights_path == "/w/a #2 ${x}"


def test_counts_alone_need_no_fraction():
    config = load_config(None, ["sweep.real_count=[5,10]"])
    assert config.sweep.real_fraction == []
    assert config.sweep.real_count == [5, 10]


@pytest.mark.parametrize("condition", ["real", "weak", "strong"])
def test_without_pairs_the_share_of_pairs_does_not_matter(condition):
    share = "segmenter.synthetic_share=0.1"
    config = load_config(TOY, [share, f"sweep.condition=[{condition}]"])
    assert config.sweep.condition == [condition]
    # The real images once more fill that share too.
    for other in ("real_repeated", "warp", "phantom", "real_resized"):
        with pytest.raises(InputError, match="no image of a batch of 4"):
            load_config(TOY, [share, f"sweep.condition=[{condition},{other}]"])


@pytest.mark.parametrize("scale", [0, 0.5, 2])
def test_guidance_needs_images_without_their_mask(scale):
    asked = f"synthesis.sampler.guidance_scale={scale}"
    with pytest.raises(InputError, match=r"synthesis\.sampler.*set generator\.mask_dropout=0\.1"):
        load_config(TOY, [asked])
    load_config(TOY, [asked, "generator.mask_dropout=0.1"])
    stable = ["sweep.generator=[stable_diffusion]", "stable_diffusion.mask_dropout=0"]
    own = f"stable_diffusion.sampler.guidance_scale={scale}"
    with pytest.raises(InputError, match=r"stable_diffusion\.sampler\.guidance_scale"):
        load_config(TOY, [*stable, own, "stable_diffusion.route=sd_mask"])
    # It draws its own outlines, on no mask.
    load_config(TOY, [*stable, own, "stable_diffusion.route=sd_in_channel"])


def test_folds_of_cross_testing():
    config = load_config(TOY, ["split.n_folds=3", "sweep.fold=[0,1,2]"])
    assert (config.split.n_folds, config.sweep.fold) == (3, [0, 1, 2])
    with pytest.raises(InputError, match=r"sweep\.fold=3: split\.n_folds=3 has folds 0 to 2"):
        load_config(TOY, ["split.n_folds=3", "sweep.fold=[0,3]"])
    config = load_config(TOY, ["split.n_folds=3", "split.file=split.json"])
    assert (config.split.n_folds, config.split.file) == (3, "split.json")


def test_a_time_in_a_recipe_is_no_number_of_base_60(tmp_path):
    recipe = tmp_path / "mine.yaml"
    for text in ("1:00:00", "2:30"):
        recipe.write_text(f"slurm:\n  time_min: {text}\n")
        with pytest.raises(InputError, match=rf"slurm\.time_min.*{text}"):
            load_config(str(recipe), [])
    with pytest.raises(InputError, match=r"sweep\.seed.*1:30"):
        load_config(TOY, ["sweep.seed=[1:30]"])


def test_resolved_config_loads_again_to_the_same_config(tmp_path):
    config = load_config(TOY, ["data.root=/data", "sweep.seed=[3]"])
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(resolved(config)))
    assert load_config(str(copy), []) == config


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_shipped_recipe_is_valid(recipe):
    config = load_config(recipe, [])
    assert config.name
    assert config.data.root is None, "a recipe must not hold a path of one machine"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("segmenter.stepz=3", ["segmenter.stepz", "did you mean segmenter.steps"]),
        ("segmentr.steps=3", ["segmentr", "did you mean segmenter"]),
        ("segmenter.steps.more=3", ["segmenter.steps", "single value"]),
        ("segmenter=3", ["segmenter", "group"]),
        ("segmenter.steps=many", ["segmenter.steps", "many"]),
        ("segmenter.steps=0", ["segmenter", "steps", "at least 1"]),
        ("segmenter.backbone=vit", ["backbone", "lite"]),
        ("segmenter.steps=", ["no value"]),
        ("segmenter.steps", ["key=value"]),
        ("sweep.condition=[real", ["not valid YAML", "list"]),
        ("sweep.condition=[real,magic]", ["condition", "magic"]),
        ("sweep.condition=[]", ["sweep.condition", "at least one"]),
        ("sweep.seed=[0,0]", ["sweep.seed", "twice"]),
        ("sweep.choice=[by_pixelsize]", ["sweep.choice", "did you mean by_pixel_size"]),
        ("sweep.choice=[random,random]", ["sweep.choice", "twice"]),
        ("sweep.choice=[]", ["sweep.choice", "at least one"]),
        ("statistics.primary.choice=coverge", ["primary.choice", "did you mean coverage"]),
        ("sweep.real_fraction=[0]", ["sweep.real_fraction=0", "above 0"]),
        ("sweep.real_fraction=[1.5]", ["sweep.real_fraction=1.5", "at most 1"]),
        ("sweep.real_fraction=[-0.1]", ["sweep.real_fraction=-0.1"]),
        ("sweep.real_count=[0]", ["sweep.real_count=0", "at least 1"]),
        ("split.test=-1", ["split.test=-1"]),
        ("split.val=0", ["split.val=0"]),
        ("split.test=2.5", ["split.test=2.5", "whole number"]),
        ("generator.size_hw=[30,50]", ["generator.size_hw", "multiple"]),
        ("evaluation.prompts=[no_box]", ["prompts", "no_box"]),
        ("evaluation.controls=[oracle]", ["controls", "oracle"]),
        ("evaluation.controls=[mean_mask,mean_mask]", ["evaluation.controls", "twice"]),
        ("gate.prompt=predicted_box", ["gate", "prompt", "predicted_box"]),
        ("augment.n_views=1", ["augment.n_views=1", "at least 2", "null"]),
        ("augment.max_per_trial=1", ["augment.max_per_trial=1", "at least 2", "null"]),
        ("unet.size_hw=[100,192]", ["unet", "size_hw", "multiples of 32"]),
        ("split.n_folds=0", ["split.n_folds=0", "1 for a single split"]),
        ("sweep.fold=[1]", ["sweep.fold=1", "split.n_folds=1", "folds 0 to 0"]),
        ("sweep.fold=[0,0]", ["sweep.fold", "twice"]),
        ("statistics.primary.condition=magic", ["statistics.primary.condition=magic", "warp"]),
        ("statistics.primary.segmenter=smu", ["statistics.primary.segmenter=smu", "sam"]),
        ("statistics.primary.generator=pixl", ["statistics.primary.generator=pixl", "pixel"]),
        ("statistics.primary.prompt=no_box", ["statistics.primary.prompt=no_box", "tight_box"]),
        ("trainer.devices=0", ["trainer.devices=0"]),
        ("trainer.devices=3", ["trainer.devices=3", "segmenter.batch_size=4"]),
        ("sweep.devices=[0,0]", ["sweep.devices=[0, 0]", "twice"]),
        ("sweep.per_device=0", ["sweep.per_device=0", "from 1, or auto"]),
        ("sweep.per_device=all", ["sweep.per_device=all", "from 1, or auto"]),
        ("sweep.retries=-1", ["sweep.retries=-1"]),
        ("slurm.time_min=0", ["slurm.time_min=0"]),
        ("slurm.grace_s=0", ["slurm.grace_s=0"]),
        ("slurm.time_min=2", ["slurm.grace_s=120", "slurm.time_min=2"]),
        ("slurm.poll_s=0", ["slurm.poll_s=0"]),
        ("split.test=.inf", ["split.test=inf"]),
        ("segmenter.learning_rate=.inf", ["segmenter.learning_rate", "inf"]),
        ("segmenter.weight_decay=.inf", ["segmenter.weight_decay", "inf"]),
        ("segmenter.synthetic_share=0.1", ["segmenter.synthetic_share=0.1", "batch of 4"]),
        ("gate.intensity_slack=.nan", ["gate.intensity_slack=nan"]),
        ("gate.intensity_slack=-1", ["gate.intensity_slack=-1"]),
        ("evaluation.prompts=[whole_image,whole_image]", ["evaluation.prompts", "twice"]),
        ("synthesis.image_hw=[540,0]", ["synthesis.image_hw=0", "32"]),
        ("synthesis.image_hw=[540]", ["synthesis.image_hw=[540]", "2 whole numbers"]),
        ("synthesis.image_hw=[a,b]", ["synthesis.image_hw=['a', 'b']", "2 whole numbers"]),
        ("synthesis.folder_labels=-3", ["synthesis.folder_labels=-3"]),
        ("generator.size_hw=64", ["generator.size_hw=64", "[64]"]),
        ("sweep.real_fraction=0.1", ["sweep.real_fraction=0.1", "[0.1]"]),
        ("sweep.condition=real", ["sweep.condition=real", "[real]"]),
        ("data.test_cohorts=/data/es", ["data.test_cohorts=/data/es", "[/data/es]"]),
        ("store.root=''", ["store.root"]),
        ("gate.min_agreement=2", ["gate.min_agreement=2"]),
        ("wandb.project=team/sonosweep", ["wandb.project=team/sonosweep", "no /", "wandb.entity"]),
        (f"wandb.project={'p' * 129}", ["wandb.project=", "129 letters"]),
        ("wandb.project=''", ["wandb.project=", "0 letters"]),
        ("name=a/b", ["name=", "a/b"]),
        ("tags.0=x", ["tags"]),
        ("sweep.seed.0=x", ["sweep.seed", "a list is needed; write [a,b]"]),
        ("sweep.seed=[-1]", ["sweep.seed=-1", "in [0, 1e+09]"]),
        ("sweep.support=[-1]", ["sweep.support=-1"]),
        ("synthesis.generator_support=-1", ["synthesis.generator_support=-1"]),
        ("sweep.generator_seed=[99999999999999999999]", ["sweep.generator_seed=99999999999999999"]),
        ("sweep.also={segmenter: sam}", ["sweep.also=", "a list is needed; write [{key: value}]"]),
        ("segmenters.a=5", ["segmenters.a=5", "a group of keys", "segmenters.a.kind="]),
        ("segmenters={a: null}", ["segmenters.a=None", "a group of keys"]),
        ("generators={a: [1]}", ["generators.a=[1]", "a group of keys"]),
        ("segmenters.a.kind=[sam]", ["segmenters.a.kind=['sam']", "one kind"]),
        ("gate.judge.kind=[unet]", ["gate.judge"]),
        ("slurm.time_min=1:00:00", ["slurm.time_min", "1:00:00"]),
        ("sweep.condition=[[real]]", ["sweep.condition", "['real'] is not a single value"]),
        (
            "sweep.also=[{segmenter: sam, real_count: 5}]",
            ["sweep.also[0].real_count", "known keys"],
        ),
        ("segmenter.steps=???", ["segmenter.steps=???", "no value"]),
        ("offline=5", ["offline=5", "true or false"]),
        ("offline=maybe", ["offline"]),
        (f"name={'n' * 101}", ["name=", "at most 100"]),
        ("conditions.a/b={pairs: warp}", ["conditions.a/b", "letters"]),
        ("segmenters={1: {kind: unet}}", ["segmenters.1: a name is a text; write it in quotes"]),
        ("segmenters.a/b={kind: unet}", ["segmenters.a/b", "letters"]),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_key(override, words):
    with pytest.raises(InputError) as raised:
        load_config(TOY, [override])
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", ["not valid YAML"]),
        ("- a\n- b\n", ["mapping"]),
        ("segmenter: {step: 3}", ["segmenter.step", "did you mean segmenter.steps"]),
        ("segmenter: 3", ["segmenter", "group"]),
        ("sweep: {condition: real}", ["sweep.condition=real", "[real]"]),
        ("", ["mapping"]),
        ("segmenters: {1: {kind: unet}}", ["segmenters.1: a name is a text; write it in quotes"]),
        ("segmenters: {~: {kind: unet}}", ["segmenters.null: ", "in quotes, or choose another"]),
        ("conditions: {true: {pairs: warp}}", ["conditions.true: a name is a text"]),
        ("statistics: {primary: {~: real}}", ["statistics.primary.null: a name is a text"]),
        ("3: x", ["broken.yaml: 3: a name is a text"]),
        ("name: " + 3000 * "[", ["not valid YAML"]),
    ],
)
def test_a_broken_recipe_is_one_line_that_names_the_file(tmp_path, text, words):
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(text)
    with pytest.raises(InputError) as raised:
        load_config(str(recipe), [])
    message = str(raised.value)
    assert "\n" not in message
    assert "broken.yaml" in message
    for word in words:
        assert word in message


def test_an_unknown_recipe_names_the_shipped_ones():
    with pytest.raises(InputError, match=r"nothere: no such file; shipped recipes: .*demo"):
        load_config("nothere", [])


def test_a_folder_is_no_recipe_and_a_reference_to_nothing_names_its_key(tmp_path):
    with pytest.raises(InputError, match="a folder, and not a sweep's"):
        load_config(str(tmp_path), [])
    recipe = tmp_path / "refers.yaml"
    recipe.write_text("name: ${nope}")
    with pytest.raises(InputError, match=r"^name: Interpolation key 'nope' not found$"):
        load_config(str(recipe), [])


def test_a_missing_root_says_what_to_set(monkeypatch):
    monkeypatch.delenv("HC18_ROOT", raising=False)
    with pytest.raises(InputError, match=r"data\.root.*HC18_ROOT"):
        load_config(TOY, []).data_root()
    monkeypatch.setenv("HC18_ROOT", "/somewhere")
    assert str(load_config(TOY, []).data_root()) == "/somewhere"


def test_the_primary_contrast_is_of_the_recipes_own_first_segmenter_and_generator():
    words = ["sweep.segmenter=[unet,sam]", "sweep.generator=[stable_diffusion,pixel]"]
    primary = load_config(None, words).statistics.primary
    assert (primary.segmenter, primary.generator) == ("unet", "stable_diffusion")
    chosen = load_config(None, [*words, "statistics.primary.segmenter=sam"]).statistics.primary
    assert (chosen.segmenter, chosen.generator) == ("sam", "stable_diffusion")
