"""Named blocks of segmenters and generators, conditions of a recipe's own, and what is refused."""

from dataclasses import dataclass

import pytest
from toy_recipe import TOY

from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.config.shapes import check_shape
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.unet.config import UnetConfig


def test_a_block_starts_from_its_kinds_section_and_changes_what_it_names():
    config = load_config(
        TOY,
        [
            "segmenter.steps=9",
            "unet.steps=7",
            "segmenters.sam_lora={kind: sam, tuning: lora}",
            "segmenters.large.kind=unet",
            "segmenters.large.size_hw=[192,288]",
            "generators.small={kind: pixel, block_out_channels: [8, 16]}",
            "sweep.segmenter=[sam,sam_lora,unet,large]",
            "sweep.generator=[pixel,small]",
        ],
    )
    lora, large = config.segmenter_named("sam_lora"), config.segmenter_named("large")
    assert isinstance(lora, SegmenterConfig)
    assert (lora.steps, lora.tuning, config.segmenter.tuning) == (9, "lora", "decoder")
    assert isinstance(large, UnetConfig)
    assert (large.steps, large.size_hw, config.unet.size_hw) == (7, (192, 288), (128, 192))
    assert config.generator_named("small").block_out_channels == (8, 16)
    assert config.generator_named() is config.generator


def test_the_gates_judge_has_settings_of_its_own():
    assert load_config(TOY, ["segmenter.tuning=lora"]).judge().tuning == "decoder"
    given = load_config(TOY, ["gate.judge={steps: 11}"])
    assert (given.judge().steps, given.segmenter.steps) == (11, 32)
    assert isinstance(load_config(TOY, ["gate.judge={kind: unet}"]).judge(), UnetConfig)


def test_single_arms_stand_beside_the_cross():
    words = ["sweep.segmenter=[sam]", "sweep.condition=[real,strong]"]
    config = load_config(TOY, [*words, "sweep.also=[{segmenter: unet, condition: weak}]"])
    assert config.arms() == [("sam", "real"), ("sam", "strong"), ("unet", "weak")]
    assert config.segmenter_names() == ["sam", "unet"]


def test_on_and_off_are_words_in_a_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "conditions: {raw: {pairs: synthetic, labels: fixed, gate: off}}\n"
        "sweep: {condition: [raw], real_count: [5]}\n"
        "gate: {enabled: no}\n"
    )
    config = load_config(str(path), [])
    assert config.condition("raw").gate == "off"
    assert config.gate.enabled is False


def test_the_condition_unet_of_before_is_read_as_the_segmenter_that_it_was(capsys):
    config = load_config(TOY, ["sweep.condition=[real,strong,unet]"])
    assert config.arms() == [("sam", "real"), ("sam", "strong"), ("unet", "real")]
    assert "is read as segmenter unet under the condition real" in capsys.readouterr().err
    alone = load_config(TOY, ["sweep.condition=[unet]"])
    assert alone.arms() == [("unet", "real")]
    with pytest.raises(InputError, match="contrasts are within one"):
        load_config(TOY, ["statistics.primary.condition=unet"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep.segmenter=[unett]"], "sweep.segmenter=unett: unknown; did you mean unet?"),
        (["sweep.generator=[pixle]"], "sweep.generator=pixle: unknown; did you mean pixel?"),
        (["sweep.condition=[strang]"], "sweep.condition=strang: unknown; did you mean strong?"),
        (["sweep.segmenter=[sam,sam]"], "a value is listed twice"),
        (["segmenters.mine={tuning: lora}"], "segmenters.mine: say its kind, one of sam, unet"),
        (["segmenters.mine={kind: sma}"], "segmenters.mine.kind=sma: unknown; did you mean sam?"),
        (
            ["segmenters.mine={kind: sam, tunning: lora}"],
            "segmenters.mine.tunning: unknown key; did you mean segmenters.mine.tuning?",
        ),
        (["segmenters.mine={kind: sam, 1: 2}"], "segmenters.mine.1: a name is a text"),
        (["segmenters.mine={kind: sam, steps: 3.7}"], "segmenters.mine.steps: Value '3.7'"),
        (
            ["segmenters.mine={kind: unet, size_hw: [96]}"],
            "size_hw=[96]: 2 whole numbers are needed",
        ),
        (["segmenters.mine={kind: unet, size_hw: [96,b]}"], "2 whole numbers are needed"),
        (["segmenters.mine={kind: unet, size_hw: 96}"], "a list is needed; write [96]"),
        (["segmenters.mine={kind: unet, steps: [1,2]}"], "segmenters.mine.steps: "),
        (
            ["segmenters.mine={kind: unet, light_augmentation: 2}"],
            "segmenters.mine.light_augmentation=2: use true or false",
        ),
        (["gate.judge={steps: many}"], "gate.judge.steps: Value 'many'"),
        (
            ["generators.mine={kind: stable_diffusion, sampler: {steps: 1}}"],
            "generators.mine.sampler.steps: unknown key",
        ),
        (["generators.mine={kind: stable_diffusion, sampler: 3}"], "is a group of keys"),
        (["segmenters.mine={kind: sam, steps: 0}"], "segmenters.mine.steps=0: must be at least 1"),
        (["segmenters.unet={kind: sam}"], "unet is a kind; use another name"),
        (["segmenters.judge={kind: unet}"], "segmenters.judge: this name is the gate's"),
        (
            ["segmenters.judge={kind: unet}", "sweep.segmenter=[judge]"],
            "segmenters.judge: this name is the gate's; use another one",
        ),
        (
            ["sweep.segmenter=[sam,judge]"],
            "segmenters.judge: this name is the gate's; use another one",
        ),
        (["generators.mine={kind: unet}"], "generators.mine.kind=unet: unknown"),
        (["gate.judge={kind: judge}"], "gate.judge.kind=judge: unknown"),
        (["conditions.strong={pairs: warp}"], "conditions.strong: this name is taken"),
        (["conditions.raw={pairs: warp, gate: off}"], "pass no gate"),
        (["conditions.raw={pears: warp}"], "pears"),
        (
            ["sweep.segmenter=[unet]", "evaluation.prompts=[jittered_box]"],
            "unet takes no box; add whole_image",
        ),
        (
            ["sweep.segmenter=[sam,unet]", "trainer.devices=2", "sweep.workers=1"],
            "trainer.devices=2: unet is fitted on one device",
        ),
        (
            ["gate.judge={kind: unet}", "trainer.devices=2", "sweep.workers=1"],
            "trainer.devices=2: gate.judge is fitted on one device",
        ),
        (
            ["gate.judge={batch_size: 3}", "trainer.devices=2", "sweep.workers=1"],
            "trainer.devices=2: gate.judge.batch_size=3 cannot be shared evenly",
        ),
        (["sweep.segmenter=[]"], "sweep.segmenter: give at least one value"),
        (["extensions=[no_such_rooms]"], "no_such_rooms cannot be imported"),
        (["extensions=no_such_rooms"], "a list is needed"),
    ],
)
def test_what_stands_for_nothing_is_one_line(words, message):
    with pytest.raises(InputError) as caught:
        load_config(TOY, words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_an_extension_may_have_other_shapes_than_our_own():
    @dataclass
    class Settings:
        betas: tuple[float, float] = (0.9, 0.99)
        names: tuple[str, ...] = ("a",)
        weights: dict[str, float] | None = None
        judge: UnetConfig | None = None
        limit: int | None = None

    given = {"betas": [0.5, 1], "names": ["b", "c"], "weights": {"a": 0.5}, "judge": {"steps": 1}}
    check_shape(given, Settings)
    with pytest.raises(InputError, match="a list is needed"):
        check_shape({"betas": 0.5}, Settings)
    with pytest.raises(InputError, match="limit: is a single value"):
        check_shape({"limit": {"a": 1}}, Settings)


def test_two_blocks_of_one_name_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("segmenters:\n  a: {kind: sam}\n  a: {kind: unet}\n")
    with pytest.raises(InputError, match=r"line 3: a is listed twice"):
        load_config(str(path), [])
