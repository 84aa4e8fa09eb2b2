"""The recipe that most tests start from."""

from pathlib import Path

TOY = str(Path(__file__).with_name("toy.yaml"))
