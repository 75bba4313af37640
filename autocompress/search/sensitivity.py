"""What each decision costs by itself: probes of single decisions, made monotone, filled in where time ran out."""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

from autocompress.compression.methods.method import Approach
from autocompress.compression.plan import Plan
from autocompress.search.space import Choice, Decision, Space
from autocompress.vocabulary.errors import Failure

NEARLY_LOSSLESS = 0.02
"""Divergence of a model in one format below which its layers are not probed one by one (nats, or relative error)."""

Errors = Mapping[str, tuple[float, ...]]
"""Decision name → the error of each of its options, 0 for the first, never falling."""


@dataclass(slots=True)
class Probes:
    """Divergences of plans from the original, each found once. `known` outlives the search; `expired` ends probing.

    A plan that can't be built is as bad as can be.
    """

    space: Space
    divergence: Callable[[Plan], float]
    known: MutableMapping[str, float]
    expired: Callable[[], bool]

    def of(self, choice: Choice) -> float | None:
        """None if it is not known and time is up."""
        plan = self.space.plan(choice)
        if plan.key not in self.known:
            if self.expired():
                return None
            try:
                self.known[plan.key] = self.divergence(plan)
            except Failure:
                self.known[plan.key] = UNBUILDABLE
        return self.known[plan.key]


UNBUILDABLE = 1e9


def probe(probes: Probes) -> Errors:
    """Errors of every option of every decision but those for another model, the most telling options first."""
    found: dict[str, dict[int, float]] = {decision.name: {0: 0.0} for decision in probes.space.decisions}
    _probe_formats(probes, found)
    for decision, index in _order(probes.space):
        error = probes.of({decision.name: index})
        if error is None:
            break
        found[decision.name][index] = error
    typical = _typical(probes.space, found)
    return {d.name: _filled(d, found[d.name], typical.get(d.method, 1.0)) for d in probes.space.decisions}


def _probe_formats(probes: Probes, found: dict[str, dict[int, float]]) -> None:
    """One probe of all layers in a format; single ones only if that one shows a loss worth sharing out rightly."""
    for uniform in probes.space.uniform.values():
        together = probes.of(uniform)
        if together is None:
            return
        for name, index in uniform.items():
            alone = probes.of({name: index}) if together > NEARLY_LOSSLESS else None
            found[name][index] = together / len(uniform) if alone is None else alone


def _order(space: Space) -> list[tuple[Decision, int]]:
    """Whole branches first, then each amount at half, then what is strongest, then replacements."""
    amounts, replacements = space.approached(Approach.AMOUNT), space.approached(Approach.REPLACEMENT)
    drops = [(d, len(d.options) - 1) for d in amounts if space.drops(d)]
    halves = [(d, len(d.options) // 2) for d in amounts if len(d.options) > 2]
    strongest = [(d, len(d.options) - 1 - space.drops(d)) for d in amounts]
    ends = [(d, index) for d in replacements for index in dict.fromkeys((len(d.options) - 1, 1))]
    return list(dict.fromkeys((d, i) for d, i in drops + halves + strongest + ends if i > 0))


def _typical(space: Space, found: Mapping[str, Mapping[int, float]]) -> dict[type, float]:
    """Mean error of a method's strongest probed options."""
    seen: dict[type, list[float]] = {}
    for decision in space.decisions:
        strongest = max(found[decision.name])
        if strongest and found[decision.name][strongest] < UNBUILDABLE:
            seen.setdefault(decision.method, []).append(found[decision.name][strongest])
    return {method: sum(errors) / len(errors) for method, errors in seen.items()}


def _filled(decision: Decision, known: Mapping[int, float], typical: float) -> tuple[float, ...]:
    """Straight lines between what is known; beyond it, growing with the square; then made monotone."""
    last = len(decision.options) - 1
    points = dict(known)
    if last not in points:
        furthest = max(points)
        points[last] = points[furthest] * (last / furthest) ** 2 if furthest else typical
    marks = sorted(points)
    errors: list[float] = []
    for index in range(last + 1):
        before = max(mark for mark in marks if mark <= index)
        after = min(mark for mark in marks if mark >= index)
        part = (index - before) / (after - before) if after > before else 0.0
        errors.append(max(points[before] + part * (points[after] - points[before]), errors[-1] if errors else 0.0))
    return tuple(errors)
