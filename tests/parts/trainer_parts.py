"""The trainer of the tests of segmenters: one CPU, silent, a new loader for every epoch."""

import lightning as L


def make_trainer(tmp_path, **changes):
    flags = {
        "default_root_dir": tmp_path,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "reload_dataloaders_every_n_epochs": 1,
    }
    return L.Trainer(**{**flags, **changes})
