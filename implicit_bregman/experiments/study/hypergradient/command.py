"""The command `implicit-bregman study hypergradient`: its options."""

from __future__ import annotations

from dataclasses import replace

from implicit_bregman.experiments.grid.command import BackendName, Jobs, Quick, Scheduler, Seed, given
from implicit_bregman.experiments.study.options import STUDY, Out, Seeds


def hypergradient(
    quick: Quick = False,
    seed: Seed = 0,
    seeds: Seeds = None,
    backend: BackendName = "local",
    scheduler: Scheduler = None,
    jobs: Jobs = None,
    out: Out = None,
) -> None:
    """Error of the gradient against inner iterations and total work, beside the theoretical rates."""
    options = dict(locals())
    from implicit_bregman.experiments.study.hypergradient.report import study_hypergradient
    from implicit_bregman.experiments.study.hypergradient.settings import HypergradientSettings

    settings = HypergradientSettings.quick(seed) if quick else HypergradientSettings(seed=seed)
    settings = replace(settings, **given(seeds=seeds))
    STUDY.run("hypergradient", study_hypergradient, settings, options)
