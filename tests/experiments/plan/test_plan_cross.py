"""Every segmenter with every condition and every kind of generator, as a plan."""

from plan_parts import plan
from sd_parts import tiny_pipeline

from experiments.config.conditions import CONDITIONS
from lightning_modules.generators.table import GENERATORS
from lightning_modules.segmenters.table import SEGMENTERS


def test_every_combination_is_a_trial_and_all_segmenters_see_the_same_pairs(tmp_path):
    made = plan(
        f"sweep.segmenter=[{','.join(SEGMENTERS)}]",
        f"sweep.condition=[{','.join(CONDITIONS)}]",
        f"sweep.generator=[{','.join(GENERATORS)}]",
        f"stable_diffusion.base_model={tiny_pipeline(tmp_path / 'base')}",
        "sweep.real_fraction=[0.1]",
        "synthesis.generator_count=20",
    )
    found = {(spec.segmenter, spec.condition, spec.generator): spec for spec in made.grid}
    assert set(found) == {
        (segmenter, condition, generator)
        for segmenter in SEGMENTERS
        for condition, row in CONDITIONS.items()
        for generator in (GENERATORS if row.factors.has_generator else [""])
    }
    assert len({spec.fit_key for spec in found.values()}) == len(found) == len(made.grid)
    assert len({spec.id for spec in found.values()}) == len(found)
    for condition in CONDITIONS:
        for generator in ("", *GENERATORS):
            pairs = {
                made.nodes[spec.fit_key].upstream.get("pairs")
                for (_, name, by), spec in found.items()
                if (name, by) == (condition, generator)
            }
            assert len(pairs) <= 1, (condition, generator)
