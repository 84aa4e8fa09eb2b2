"""What the paper's stages cost on other GPUs, and whether they fit: hand-computed."""

from contextlib import nullcontext

import pytest
from toy_recipe import TOY

from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.plan.nodes import Node, Plan
from experiments.runner import memory
from experiments.runner.costs import Costs, gpus, known_gpu, reference_cost
from experiments.runner.memory import check_gpu_memory, training_gib
from experiments.store.runs import write_done


@pytest.fixture(scope="module")
def config():
    return load_config("paper_hc18", [])


def node(stage, **given):
    return Node(stage=stage, **{"content": {}, "generator": "stable_diffusion", **given})


def test_ratios_are_those_of_the_published_numbers():
    assert {name: round(gpu.ratio, 3) for name, gpu in gpus().items()} == {
        "H200": 1.0,
        "H100": round(4800 / 3350, 3),
        "RTX 4090": round(989.4 / 165.2, 3),
    }
    assert "nothing measured" not in gpus()["H200"].how
    assert all("nothing measured" in gpus()[name].how for name in ("H100", "RTX 4090"))
    assert known_gpu("NVIDIA GeForce RTX 4090") == "RTX 4090"
    assert known_gpu("NVIDIA H100 80GB HBM3") == "H100"
    for other in ("Tesla T4", "NVIDIA GH200 480GB", "NVIDIA GeForce RTX 4090 Laptop GPU"):
        assert known_gpu(other) is None


def test_costs_follow_the_measured_rows_and_the_settings(config):
    a_pass = 803  # GFLOP at 512x512
    drawn = reference_cost(node("synthesize"), config=config, gpu="H200")
    assert drawn.seconds_per_unit == pytest.approx(0.166 * 60 * a_pass / (60 * 662))
    # One image a step: what launches the kernels bounds it, but on the slowest GPU.
    least = reference_cost(node("generator"), config=config, gpu="H200")
    assert least.seconds_per_unit == pytest.approx(0.0192 * 2.08, abs=1e-4)
    slow = reference_cost(node("generator"), config=config, gpu="RTX 4090")
    assert slow.seconds_per_unit == pytest.approx(0.0148 * a_pass / 662 * 989.4 / 165.2, rel=1e-3)
    embed = node("embed", content={"encoder": {"backbone": "vit_b"}})
    found = reference_cost(embed, config=config, gpu="H100")
    assert found == (pytest.approx(0.00492 * 4800 / 3350), "table", 0.176)
    fit = {"content": {"segmenter": {"backbone": "vit_b"}}, "upstream": {"embeddings": "embed/a"}}
    # The host bounds a decoder's step, whatever the GPU.
    for gpu in gpus():
        assert reference_cost(node("fit", **fit), config=config, gpu=gpu)[::2] == (0.00616, 0.235)


def test_what_was_not_measured_has_no_cost(config):
    lite = {"encoder": {"backbone": "lite"}}
    without = {"segmenter": {"backbone": "vit_b"}}
    for each in (node("embed", content=lite), node("fit", content=without), node("gate")):
        assert reference_cost(each, config=config, gpu="H200") is None
    # Half of the encoder is in each step: what it reads is cached, but no embedding.
    late = load_config("paper_hc18", ["segmenter.backbone=vit_b", "segmenter.tuning=late_lora"])
    given = {"content": {"segmenter": late.segmenter.hashed()}, "upstream": {"embeddings": "e/a"}}
    for stage in ("fit", "score"):
        assert reference_cost(node(stage, **given), config=late, gpu="H200") is None
    pixel = load_config(TOY, [])
    pairs = node("synthesize", generator="pixel")
    assert reference_cost(pairs, config=pixel, gpu="H200") is None


@pytest.mark.parametrize(
    ("mib", "words", "said"),
    [
        (81559, [], None),
        (8192, [], None),
        (5120, [], r"stable_diffusion\.gradient_checkpointing=true fits \(4\.\d GiB\)"),
        (4096, [], r"gradient_checkpointing=true stable_diffusion\.size_hw=\[256,256\] fits"),
        (2048, [], "no setting of it fits: use a larger GPU, or synthesis.folder="),
        (2048, ["trainer.accelerator=cpu"], None),
    ],
)
def test_a_gpu_too_small_is_said_with_settings_that_fit(pretend, tmp_path, mib, words, said):
    pretend("NVIDIA Small", memory=str(mib))
    config = load_config("paper_hc18", [f"store.root={tmp_path}", *words])
    generator = node("generator")
    plan = Plan(nodes={generator.key: generator}, trials=[], notes=[])
    if said is None:
        check_gpu_memory(config, plan)
        return
    need = f"about {training_gib(config.stable_diffusion):.1f} GiB at 512x512"
    with pytest.raises(
        InputError, match=f"{need}, and NVIDIA Small has {mib / 1024:.1f}; .*{said}"
    ):
        check_gpu_memory(config, plan)
    run_dir = tmp_path / "store" / generator.key
    run_dir.mkdir(parents=True)
    write_done(run_dir, {})
    check_gpu_memory(config, plan)


@pytest.mark.parametrize(
    ("n_images", "words", "is_refused"),
    [
        # As many again were labelled by a teacher.
        (50, [], False),
        # 2 MiB each: 1.25 GiB beside 5.2.
        (320, [], True),
        (320, ["trainer.resident_gib=0"], False),
        (320, ["trainer.resident_gib=1"], False),
        # Split batches hold nothing.
        (320, ["stable_diffusion.batch_size=2"], False),
    ],
)
def test_items_that_stay_on_the_gpu_count_where_no_batch_can_be_split(
    pretend, tmp_path, n_images, words, is_refused
):
    pretend("NVIDIA Small", memory="6144")
    config = load_config("paper_hc18", [f"store.root={tmp_path}", *words])
    content = {"images": [[str(n), "hash"] for n in range(n_images)]}
    teacher = node("pseudo", content=content)
    generator = node("generator", content=content, upstream={"pseudo": teacher.key})
    plan = Plan(nodes={each.key: each for each in (teacher, generator)}, trials=[], notes=[])
    said = r"about 6\.4 GiB .* has 6\.0; trainer\.resident_gib=0 fits \(5\.2 GiB\)"
    with pytest.raises(InputError, match=said) if is_refused else nullcontext():
        check_gpu_memory(config, plan)


@pytest.mark.parametrize(
    ("words", "refused"),
    [([], False), (["sweep.devices=[1]"], False), (["sweep.devices=[0,1]"], True)],
)
def test_a_small_gpu_beside_a_large_one_counts_where_it_is_named(
    pretend, tmp_path, monkeypatch, words, refused
):
    """CUDA itself begins with the fastest one, wherever nvidia-smi lists it."""
    pretend("NVIDIA Small", "NVIDIA Large")
    monkeypatch.setattr(memory, "gpu_memory_gib", lambda: [2.0, 80.0])
    generator = node("generator")
    plan = Plan(nodes={generator.key: generator}, trials=[], notes=[])
    config = load_config("paper_hc18", [f"store.root={tmp_path}", *words])
    with pytest.raises(InputError, match="NVIDIA Small has 2") if refused else nullcontext():
        check_gpu_memory(config, plan)


def test_stable_diffusion_on_a_cpu_is_guessed_by_its_arithmetic(tmp_path):
    words = [f"store.root={tmp_path}", "trainer.accelerator=cpu"]
    guesses = []
    for batch in (1, 4):
        config = load_config("paper_hc18", [*words, f"stable_diffusion.batch_size={batch}"])
        cost = Costs(tmp_path, config=config).of(node("generator"))
        assert cost.source == "first guess"
        guesses.append(cost.seconds_per_unit)
    # A step of one image at 512x512 takes 1,670 GFLOP.
    assert guesses[0] > 5
    assert guesses[1] == pytest.approx(4 * guesses[0])
