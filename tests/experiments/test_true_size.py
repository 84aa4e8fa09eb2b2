"""`paper_hc18` with models of the true size and random weights, on the CPU: long, 9 GiB of memory.

TRUE_SIZE names a folder that `tests/parts/true_size.py` has written; else one is written. What
random weights cannot show is an outline in what Stable Diffusion draws: it is planted.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from segment_anything import SamPredictor, sam_model_registry
from true_size import anonymous_gib, sizes, write_all

from datamodules.samples import PHANTOM_MARKER
from experiments.runner.memory import SAVED_GIB
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig
from lightning_modules.generators.stable_diffusion.module import (
    StableDiffusionModule,
    load_stable_diffusion,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(3 * 3600)]
ROOT = Path(__file__).parents[2]
WEIGHTS_GIB = 4 * (859_520_964 + 83_653_863 + 123_060_480) / 2**30
"""Of Stable Diffusion 1.5 in float32, once."""
LOADED = """
import sys
from test_true_size import load
load(sys.argv[1])
"""
AMOUNTS = (5, 10)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder, single file and SAM's file."""
    given = os.environ.get("TRUE_SIZE")
    folder = Path(given) if given else tmp_path_factory.mktemp("true")
    found = write_all(folder)
    print("\n".join(sizes(folder)))
    return found


def load(path):
    """Print the memory that loading a base model takes beyond what is mapped, GiB, and a sum."""
    from lightning_modules.generators.stable_diffusion.base import load_base

    before, peak, ended = anonymous_gib(), 0.0, threading.Event()

    def watch():
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, anonymous_gib() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    base = load_base(path)
    ended.set()
    watcher.join()
    parts = (base.unet, base.vae, base.text_encoder)
    weights = {
        f"{number}.{name}": p.double().abs().sum().item()
        for number, part in enumerate(parts)
        for name, p in part.named_parameters()
    }
    print(json.dumps({"peak": peak, "weights": weights}))


def python(*words):
    """Run Python with the tests' own modules; what it prints."""
    here = Path(__file__).parent
    paths = [str(ROOT), str(ROOT / "tests" / "parts"), str(here), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


def test_loading_holds_the_weights_once(models):
    found = {kind: json.loads(python("-c", LOADED, models[kind])) for kind in ("folder", "file")}
    for kind, each in found.items():
        print(f"load {kind}: peak {each['peak']:.2f} GiB, weights {WEIGHTS_GIB:.2f} GiB")
        assert each["peak"] < 1.15 * WEIGHTS_GIB
    # The same weights, whichever layout they came in.
    assert found["folder"]["weights"] == found["file"]["weights"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_memory_check_knows_what_a_lora_step_keeps(models, checkpointing):
    config = StableDiffusionConfig(
        base_model=str(models["folder"]),
        route="sd_in_channel",
        gradient_checkpointing=checkpointing,
    )
    module = StableDiffusionModule.start(config, seed=0)
    module.release_base()
    module.train()
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = (torch.randn(1, 4, 64, 64), torch.tensor([500]))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        # It holds the graph, so that no storage is counted in the place of another.
        predicted = module(*inputs, prompt_embeddings=torch.randn(1, 77, 768), mask_channels=None)
    found_gib = sum(kept.values()) / 2**30
    print(f"kept of a LoRA step, checkpointing {checkpointing}: {found_gib:.2f} GiB")
    assert predicted.requires_grad
    assert found_gib == pytest.approx(SAVED_GIB[checkpointing], rel=0.05)


@pytest.fixture(scope="session")
def swept(models, tmp_path_factory):
    """The recipe from an empty store to its table: two steps of LoRA, two of the solver."""
    root = tmp_path_factory.mktemp("sweep")
    python("-m", "experiments", "data", "phantom", root / "hc18", "--n-exams", 14)
    # The paper's table takes HC18 alone.
    (root / "hc18" / PHANTOM_MARKER).unlink()
    python(
        *("-m", "experiments", "sweep", "paper_hc18", f"data.root={root / 'hc18'}"),
        *(f"store.root={root / 'runs'}", "extensions=[planted]", "wandb.mode=disabled"),
        *(f"segmenter.weights_path={models['sam']}", "segmenter.encoder_precision=bf16"),
        *(f"stable_diffusion.base_model={models['folder']}", "stable_diffusion.steps=2"),
        *("stable_diffusion.sampler.num_inference_steps=2", "synthesis.n_candidates=4"),
        *("stable_diffusion.sampler.batch_size=2", "synthesis.generator_count=3"),
        *("split.test=2", "split.val=1", "sweep.condition=[real,synthetic]"),
        *(f"sweep.real_count={list(AMOUNTS)}", "statistics.primary.real_count=5"),
        *("statistics.primary.baseline=real", "segmenter.epochs=5", "evaluation.controls=[]"),
    )
    python("-m", "experiments", "table", root / "runs" / "paper-hc18", "--kind", "paper")
    return root / "runs"


def test_the_recipe_ends_in_its_table(swept):
    for manifest in sorted(swept.glob("store/*/*/manifest.json")):
        marker = manifest.with_name("DONE.json")
        done = json.loads(marker.read_text())
        gib = done["peak_memory_mib"] / 1024
        print(f"{marker.parent.parent.name}: {done['seconds']:.0f} s, peak {gib:.2f} GiB")
    table = (swept / "paper-hc18" / "table_paper.csv").read_text().splitlines()
    ours = [line for line in table if line.startswith("HC18->HC18,")]
    names = {(line.split(",")[1], float(line.split(",")[5])) for line in ours}
    assert names == {(c, float(n)) for c in ("real", "synthetic") for n in AMOUNTS}


def test_lora_draws_the_same_in_a_stock_pipeline(swept, models):
    (folder,) = swept.glob("store/generator/*/generator")
    ours = load_stable_diffusion(folder).float()
    latents = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(3))
    embeddings = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = ours.unet(latents, 500, encoder_hidden_states=embeddings).sample
    del ours
    pipeline = StableDiffusionPipeline.from_pretrained(
        models["folder"], variant="fp16", torch_dtype=torch.bfloat16
    )
    # Rounded as ours are, then exact: the frozen weights lie in bf16.
    unet = pipeline.unet.float()
    pipeline.load_lora_weights(folder)
    with torch.inference_mode():
        found = unet(latents, 500, encoder_hidden_states=embeddings).sample
        pipeline.disable_lora()
        plain = unet(latents, 500, encoder_hidden_states=embeddings).sample
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    # LoRA's own part is small after two steps, and is there.
    assert (expected - plain).norm() > 10 * (expected - found).norm()


def test_the_segmenter_is_loaded_by_sam_predictor(swept, tmp_path):
    run = next(iter(sorted(swept.glob("store/fit/*/segmenter.safetensors")))).parent
    python(
        *("-m", "experiments", "export", run, "--format", "segment-anything"),
        *("--out", tmp_path / "sam"),
    )
    sam = sam_model_registry["vit_b"]()
    state = torch.load(tmp_path / "sam" / "sam.pth", weights_only=True, map_location="cpu")
    sam.load_state_dict(state, strict=True)
    predictor = SamPredictor(sam.eval())
    predictor.set_image(np.random.default_rng(0).integers(0, 255, (540, 800, 3), dtype=np.uint8))
    masks, scores, logits = predictor.predict(box=np.array([100, 80, 600, 400]))
    assert masks.shape[1:] == (540, 800)
    assert np.isfinite(logits).all()
    assert np.isfinite(scores).all()
