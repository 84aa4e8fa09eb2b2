"""Importing it adds the rows of its modules: what docs/extending.md shows."""

from my_rooms import mirror, one_layer, pictures, two_levels, ungated  # noqa: F401
