"""Where this installation's own files are. Torch-free."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the packages: of the checkout, or site-packages."""
RECIPES = ROOT / "experiments" / "recipes"
TEMPLATES = ROOT / "experiments" / "templates"
MODELS = ROOT / "experiments" / "models"
REFERENCE = ROOT / "experiments" / "reference"
