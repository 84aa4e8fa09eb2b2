"""Data without images, and plans of them."""

import dataclasses

from toy_recipe import TOY

from datamodules.splits import Split, Unit
from experiments.config.recipe import load_config
from experiments.plan.grid import make_plan
from experiments.plan.nodes import DataView, Plan

N_TRAIN = 46


def make_data(**changes) -> DataView:
    units = {
        f"{number:03d}_HC": Unit(
            sample_id=f"{number:03d}_HC",
            group_id=f"{number:03d}",
            exam_id=f"{number:03d}",
            frame=1,
            stratum=number % 3 + 1,
        )
        for number in range(N_TRAIN + 32)
    }
    ids = list(units)
    data = DataView(
        name="hc18",
        units=units,
        content={sample_id: f"hash-{sample_id}" for sample_id in ids},
        references={sample_id: f"reference-{sample_id}" for sample_id in ids},
        folds=(
            Split(
                train=tuple(ids[:N_TRAIN]),
                val=tuple(ids[N_TRAIN : N_TRAIN + 10]),
                test=tuple(ids[N_TRAIN + 10 :]),
            ),
        ),
        cohorts={},
    )
    return dataclasses.replace(data, **changes)


def plan(*overrides: str, data: DataView | None = None) -> Plan:
    return make_plan(load_config(TOY, list(overrides)), data or make_data())
