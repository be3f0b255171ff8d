"""Experiments: data sets, training, implicit-versus-unrolled comparison, convergence, reports and plots.

They need the extra `experiments` (scikit-learn, SciPy, matplotlib, typer, rich); the library itself does not.
"""
