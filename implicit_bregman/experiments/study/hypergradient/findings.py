"""Sentences computed from the curves and from theory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from implicit_bregman.experiments.study.hypergradient.curves import DAMPINGS, TRUNCATED
from implicit_bregman.experiments.study.hypergradient.summary import (
    TARGETS,
    Result,
    curves,
    geometric,
    lag,
    methods,
    rate,
    reached_by_all,
    slowest,
)
from implicit_bregman.experiments.study.hypergradient.theory import krylov_bound

Found = Mapping[str, Sequence[Result]]
_ROUNDING = 1e-12


def findings(found: Found) -> tuple[str, ...]:
    """What came out, case by case and over all cases."""
    told = [text for case, results in found.items() for text in (_rates(case, results), _cost(case, results))]
    told += [_plateaus(case, results) for case, results in found.items()]
    told += [_krylov(found), _closed_forms(found), _shine(found), _failures(found)]
    return tuple(told)


def _rates(case: str, results: Sequence[Result]) -> str:
    sublinear = [result["theory"]["sublinear"] for result in results if result["theory"]["sublinear"]]
    if sublinear:
        parts = []
        for name, method in (("forward", "forward"), ("implicit", "implicit-mm"), ("unrolled", "unrolled")):
            ends = [curve["error"][-1] * curve["k"][-1] for curve in curves(results, method)]
            shares = [end / theory[name] for end, theory in zip(ends, sublinear, strict=True)]
            parts.append(f"{name} {min(shares):.3f} to {max(shares):.3f}")
        return (
            f"{case}: errors fall like C/k, not linearly. Error times k at the last k, in units of the C computed from "
            f"the problem: {', '.join(parts)}."
        )
    parts = []
    for name, method in (("forward", "forward"), ("implicit", "implicit-mm"), ("unrolled", "unrolled")):
        ratios = []
        for result, curve in zip(results, curves(results, method), strict=True):
            measured = rate(curve, times_k=method == "unrolled")
            if measured is not None:
                ratios.append(math.log(measured) / math.log(slowest(result)))
        parts.append(f"{name} {min(ratios):.3f} to {max(ratios):.3f}" if ratios else f"{name} not reached")
    rates = [slowest(result) for result in results]
    return (
        f"{case}: MM contracts by q = {min(rates):.4f} to {max(rates):.4f}, from the solution alone. log of the fitted "
        f"rate over log q: {', '.join(parts)} (unrolled: of error/k).{_lag(results)}"
    )


def _lag(results: Sequence[Result]) -> str:
    """How much larger the unrolled error is than the implicit one after the same MM steps."""
    found = [pair for pair in map(lag, results) if pair is not None]
    if not found:
        return ""
    (early, first), (late, last) = (
        [geometric(values) for values in zip(*ends, strict=True)] for ends in zip(*found, strict=True)
    )
    return (
        f" The unrolled error is {first:.1f} times the implicit one after k = {early:.0f} steps, {last:.1f} times "
        f"after {late:.0f}."
    )


def _cost(case: str, results: Sequence[Result]) -> str:
    parts = []
    for target in TARGETS:
        there = {}
        for method in methods(results):
            at = reached_by_all(results, method, target)
            if at is not None:
                there[method] = at
        if not there:
            parts.append(f"{target:g}: by none")
            continue
        order = sorted(there, key=lambda method: there[method].work)
        best = ", ".join(f"{method} {there[method].work:.0f}" for method in order[:3])
        unrolled = (
            f"unrolled {there['unrolled'].work:.0f} with {math.ceil(there['unrolled'].k)} steps"
            if "unrolled" in there
            else "unrolled does not get there"
        )
        parts.append(f"{target:g}: {best}; {unrolled}")
    return f"{case}: least total work to an error of {'. Of '.join(parts)}."


def _plateaus(case: str, results: Sequence[Result]) -> str:
    parts = []
    for method in ("one-step", *(f"truncated-{last}" for last in TRUNCATED)):
        ends = [curve["error"][-1] for curve in curves(results, method)]
        cosines = [curve["cosine"][-1] for curve in curves(results, method)]
        steps = 1 if method == "one-step" else int(method.split("-")[1])
        bounds = [result["theory"]["q"] ** steps for result in results]
        parts.append(
            f"{method} {geometric(ends):.3g} (qᴷ {geometric(bounds):.3g}, cosine {statistics.fmean(cosines):.3f})"
        )
    return f"{case}: error that stays however long one iterates: {', '.join(parts)}."


def _krylov(found: Found) -> str:
    worst = 0.0
    for results in found.values():
        for method in ("cg", "chebyshev"):
            for result in results:
                condition = result["theory"]["conditions"].get(method)
                if condition is None:
                    continue
                curve = result["backward"][method]
                for k, error in zip(curve["k"], curve["error"], strict=True):
                    bound = krylov_bound(condition, int(k))
                    if bound > _ROUNDING * 100:
                        worst = max(worst, error / bound)
    return (
        f"CG and Chebyshev against 2((√κ−1)/(√κ+1))ᵏ, κ of the preconditioned system: the error of the gradient is at "
        f"most {worst:.2f} times the bound, at any k (which is one for the energy norm of v)."
    )


def _closed_forms(found: Found) -> str:
    worst = 0.0
    for results in found.values():
        for result in results:
            closed = result["theory"]["phantoms"]
            for damping in DAMPINGS:
                name = f"phantom-{damping:g}"
                pairs = zip(result["backward"][name]["error"], closed[name], strict=True)
                worst = max([worst, *(abs(error / exact - 1) for error, exact in pairs if exact > 1e-6)])
            one = result["backward"]["one-step"]["error"][0]
            worst = max(worst, abs(one / result["theory"]["plateaus"]["one-step"] - 1))
    return (
        "One-step and phantom gradients are what the closed form v − (Jᵀ)ᴷv says, with J from the solution: the errors "
        f"above 1e-6 differ by a share of {worst:.1e} at most."
    )


def _shine(found: Found) -> str:
    parts = []
    for case, results in found.items():
        plain = geometric([curve["error"][-1] for curve in curves(results, "shine")])
        refined = reached_by_all(results, "shine-refined", TARGETS[1])
        more = "never within 32" if refined is None else f"after {math.ceil(refined.k - 1e-9)} products"
        parts.append(f"{case} {plain:.2g}, refined to {TARGETS[1]:g} {more}")
    return f"SHINE at the end of Broyden's iterations: {'; '.join(parts)}."


def _failures(found: Found) -> str:
    count = sum(sum(result["failures"].values()) for results in found.values() for result in results)
    return f"{count} solves of a sample ended otherwise than by converging or by the number of iterations given."
