"""Grids of independent computations, each kept on disk as soon as it is finished."""
