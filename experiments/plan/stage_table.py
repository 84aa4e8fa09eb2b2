"""What a stage is, a row each: the one table that says so. Torch-free.

Keys of facts are dotted: `content.` is what a run is made from, `config.` the config it runs under,
`upstream.` whether it has that input, `result.` what its `DONE.json` holds.
"""

import json
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.plan.box_passes import PASSES


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """What a stage makes that others use, as W&B shows it."""

    kind: str
    """First part of its name."""
    type: str
    """W&B's type of it."""
    files: tuple[str, ...]
    """Files and folders of it in the run's directory."""
    is_uploaded: bool = True
    """Whether it goes to a server; what holds real images or others' is only referred to."""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """The facts of one stage."""

    run: str
    """Its function, `module:name`: from a StageContext to the result that its marker holds."""
    version: int = 1
    """Hashed into its ids: a new one where its results change."""
    first_guess_s: float
    """Seconds a unit of work before any was measured: two CPU cores and LiteMedSAM."""
    units: tuple[str | int, ...] = ()
    """Units of work of a finished run, as `Node.steps` counts them: the product of those of these
    facts that are there, a list by its length; 1 where none is named."""
    traits: tuple[str, ...] = ()
    """Facts that the time of one unit depends on."""
    batch: tuple[str | int, ...] = ()
    """Facts, or numbers, of which the first that is there is the size of its batch, which is
    computed in parts where memory runs out."""
    artefact: Artefact | None = None
    is_distributed: bool = False
    """Whether `trainer.devices` spreads it over several devices; the others take the first one."""
    is_training: bool = False
    """Whether it fits weights, the first in its job on a cluster."""
    is_embedding: bool = False
    """Whether its images are embedded once for all stages, and no work where they have been."""
    is_preloaded: bool = True
    """Whether the server that forks the stages imports it beforehand."""

    def load(self) -> Callable[[Any], dict[str, Any]]:
        """Import its function."""
        return pkgutil.resolve_name(self.run)

    def units_of(self, **facts: Any) -> int:
        """Units of work of a finished run by its facts; 0 where none of them says."""
        found = [key if isinstance(key, int) else value_at(facts, key) for key in self.units]
        counts = [len(f) if isinstance(f, list | tuple) else f for f in found if f is not None]
        return math.prod(counts) if counts or not self.units else 0

    def traits_of(
        self, *, content: Mapping[str, Any], upstream: Mapping[str, str], config: Any
    ) -> str:
        """What the time of one unit depends on, as text to compare."""
        facts = {"content": content, "upstream": dict.fromkeys(upstream, True), "config": config}
        return json.dumps([value_at(facts, key) for key in self.traits])

    def batch_size(self, *, content: Mapping[str, Any], config: Any) -> int:
        """Items that it computes at once on one device; 1 where nothing can be made less."""
        facts = {"content": content, "config": config}
        sizes = (key if isinstance(key, int) else value_at(facts, key) for key in self.batch)
        found = next((size for size in sizes if size is not None), 1)
        return max(1, found // config.trainer.devices) if self.is_distributed else found


def value_at(facts: Any, key: str) -> Any:
    """Value of a dotted key; None where an older run has no such setting."""
    for part in key.split("."):
        facts = facts.get(part) if isinstance(facts, Mapping) else getattr(facts, part, None)
    return facts


def _keys(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


EMBED_BATCH, SCORE_BATCH = 16, 8
"""Images that a GPU embeds at once, and that are scored at once."""
_PAIRS = ("metadata.jsonl", "image", "mask")
_WEIGHTS = ("segmenter.safetensors",)
_NETWORK = ("size_hw", "patch", "block_out_channels", "layers_per_block", "attention")
_STABLE = ("route", "size_hw", "lora_rank")
_SAMPLER = ("sampler.num_inference_steps", "sampler.guidance_scale")
_STAGES = "experiments.stages"

STAGES: dict[str, StageRow] = {
    "embed": StageRow(
        run=f"{_STAGES}.embed:run_embed",
        version=2,
        first_guess_s=1.0,
        units=("result.embedded",),
        traits=_keys("content.encoder", "backbone", "precision"),
        batch=(EMBED_BATCH,),
        is_embedding=True,
    ),
    "generator": StageRow(
        run=f"{_STAGES}.generator:run_generator",
        first_guess_s=0.35,
        units=("content.generator.steps", "content.stable_diffusion.steps"),
        traits=(
            *_keys("content.generator", *_NETWORK, "batch_size", "precision"),
            *_keys("content.stable_diffusion", *_STABLE, "batch_size", "precision"),
            "config.stable_diffusion.gradient_checkpointing",
        ),
        batch=("content.generator.batch_size", "content.stable_diffusion.batch_size"),
        artefact=Artefact(kind="generator", type="model", files=("generator",)),
        is_distributed=True,
        is_training=True,
    ),
    "synthesize": StageRow(
        run=f"{_STAGES}.generator:run_synthesize",
        first_guess_s=0.8,
        units=("config.synthesis.n_candidates",),
        traits=(
            *_keys("content.synthesis", "image_hw", *_SAMPLER),
            *_keys("content.stable_diffusion", *_SAMPLER),
            *_keys("config.generator", *_NETWORK),
            *_keys("config.stable_diffusion", *_STABLE),
        ),
        batch=("config.sampler_batch_size",),
    ),
    "pseudo": StageRow(
        run=f"{_STAGES}.pseudo:run_pseudo",
        first_guess_s=1.0,
        units=("content.images",),
        traits=("content.frame_hw", "config.segmenter.backbone"),
        artefact=Artefact(
            kind="pseudo-labels",
            type="dataset",
            files=("metadata.jsonl", "mask"),
            is_uploaded=False,
        ),
    ),
    "import_pairs": StageRow(
        run=f"{_STAGES}.make_pairs:run_import_pairs",
        first_guess_s=0.05,
        units=("content.pairs",),
        artefact=Artefact(kind="foreign-pairs", type="dataset", files=_PAIRS, is_uploaded=False),
    ),
    "warp": StageRow(
        run=f"{_STAGES}.make_pairs:run_warp",
        first_guess_s=0.2,
        units=("content.n",),
        traits=("content.image_hw",),
        artefact=Artefact(kind="warped-pairs", type="dataset", files=_PAIRS, is_uploaded=False),
    ),
    "phantom": StageRow(
        run=f"{_STAGES}.make_pairs:run_phantom",
        first_guess_s=0.3,
        units=("content.n",),
        traits=("content.image_hw",),
        artefact=Artefact(kind="phantom-pairs", type="dataset", files=_PAIRS),
    ),
    "resize": StageRow(
        run=f"{_STAGES}.make_pairs:run_resize",
        first_guess_s=0.05,
        units=("content.images",),
        artefact=Artefact(kind="resized-pairs", type="dataset", files=_PAIRS, is_uploaded=False),
    ),
    "gate": StageRow(
        run=f"{_STAGES}.gate_stage:run_gate",
        first_guess_s=0.2,
        units=("config.synthesis.n_candidates",),
        traits=("config.segmenter.backbone",),
        artefact=Artefact(kind="synthetic", type="dataset", files=(*_PAIRS, "rejected.jsonl")),
    ),
    "subset": StageRow(
        run=f"{_STAGES}.make_pairs:run_subset",
        first_guess_s=0.5,
        artefact=Artefact(kind="synthetic-subset", type="dataset", files=_PAIRS),
    ),
    "fit": StageRow(
        run=f"{_STAGES}.fit:run_fit",
        first_guess_s=0.8,
        units=("result.steps",),
        traits=(
            *_keys("content.segmenter", "kind", "backbone", "batch_size", "precision", "tuning"),
            *_keys("content.segmenter", "encoder_name", "decoder_channels", "size_hw"),
            "content.segmenter.early_stopping_patience",
            # Without embeddings every step runs the encoder.
            "upstream.embeddings",
        ),
        batch=("content.segmenter.batch_size",),
        artefact=Artefact(kind="segmenter", type="model", files=_WEIGHTS),
        is_distributed=True,
        is_training=True,
    ),
    "score": StageRow(
        run=f"{_STAGES}.scoring:run_score",
        version=2,
        first_guess_s=0.15,
        units=("content.test", "content.evaluation.jitter_draws"),
        traits=("config.segmenter.backbone", "content.evaluation.prompt", "upstream.embeddings"),
        batch=(SCORE_BATCH,),
    ),
    "control": StageRow(
        run=f"{_STAGES}.scoring:run_control",
        version=3,
        first_guess_s=0.1,
        units=("content.test",),
        traits=("content.kind",),
    ),
    "fidelity": StageRow(
        run=f"{_STAGES}.fidelity_stage:run_fidelity",
        version=2,
        first_guess_s=70.0,
        traits=("config.segmenter.backbone", "config.synthesis.n_candidates"),
    ),
    "box": StageRow(
        run=f"{_STAGES}.scoring:run_box",
        version=2,
        first_guess_s=0.3,
        units=("content.test", len(PASSES)),
        traits=("config.segmenter.backbone",),
        batch=(SCORE_BATCH,),
    ),
}
"""The stages. Another one is another row, from outside as well: `STAGES["toy"] = StageRow(...)`."""
