"""The plans that are tried before a sampler proposes any: uniform ones, and those that sensitivities suggest."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from autocompress.compression.methods.method import Approach
from autocompress.compression.plan import Plan
from autocompress.search.knapsack import Knapsack
from autocompress.search.sensitivity import NEARLY_LOSSLESS, Errors, Probes
from autocompress.search.space import Choice, Decision, Space

FASTEST_SHARE = 0.5
"""Ladders of plans end at this share of the time of the plan they start from: below it, little accuracy is left."""

DENSER_MILD = 1.5
"""Exponent of a ladder's steps in speed-up; 1 is even steps."""

LOOK_AHEAD = 3
"""Residual branches that are probed together with those already dropped, before the next one is chosen."""

_BISECTIONS = 20
_CORRECTIONS = 4


@dataclass(frozen=True, slots=True)
class Proposal:
    """A choice to try, and what it is called."""

    origin: str
    choice: dict[str, int] = field(hash=False)


@dataclass(frozen=True, slots=True)
class WarmStart:
    """All that proposals are made from. `seconds` prices a plan; `budget_s` is the latency to keep, if any."""

    space: Space
    seconds: Callable[[Plan], float]
    errors: Errors
    probes: Probes
    rungs: int
    budget_s: float | None = None

    def proposals(self) -> list[Proposal]:
        """The original, the number formats, then plans on top of each of them, those on the fastest format first.

        Within a format it is one of each series in turn, so that whenever time ends all have been tried. The strongest
        plan of all shows how bad a score can get.
        """
        contexts = self.contexts()
        floor_s = self._lossless_s(contexts)
        found = [Proposal("original", {})] + [Proposal(name, choice) for name, choice in contexts[::-1] if choice]
        found.append(Proposal("strongest", {d.name: len(d.options) - 1 for d in self.space.decisions}))
        for name, context in contexts[::-1]:
            if name in self.space.uniform and len(contexts) > 2:
                continue
            turns = zip_longest(*self._series(name, context))
            proposed = [proposal for turn in turns for proposal in turn if proposal is not None]
            proposed += [
                Proposal(f"{name}, {d.by.name} {d.values[i]}", {**context, d.name: i}) for d, i in self._models()
            ]
            found += [proposal for proposal in proposed if self._price(proposal.choice) < floor_s]
        return _distinct(self.space, found)

    def _lossless_s(self, contexts: Sequence[tuple[str, dict[str, int]]]) -> float:
        """The least time that number formats reach without losing anything: whatever takes longer is no use."""
        lossless = [c for _, c in contexts if sum(self.errors[name][i] for name, i in c.items()) <= NEARLY_LOSSLESS]
        return min((self._price(choice) for choice in lossless if choice), default=math.inf)

    def contexts(self) -> list[tuple[str, dict[str, int]]]:
        """Number formats of all layers that further decisions are added to: fp32 first, the fastest last.

        All layers alike are tried as they are, but plans are made on top of better mixtures where there are any.
        """
        uniform = {str(value): choice for value, choice in self.space.uniform.items()}
        if not uniform:
            return [("fp32", {})]
        fastest, formats = self._fastest_formats(), " or ".join(uniform)
        found = {
            "fp32": {},
            **uniform,
            f"{formats} where tolerated": self._tolerated(fastest),
            f"{formats} where it pays": fastest,
        }
        return list({self.space.plan(choice).key: (name, choice) for name, choice in found.items()}.values())

    def _series(self, name: str, context: dict[str, int]) -> list[list[Proposal]]:
        return [
            [
                Proposal(f"{name}, {count} branches dropped", c)
                for count, c in enumerate(self._dropped(context), start=1)
            ],
            [Proposal(f"{name}, knapsack", choice) for choice in self._solved(context)],
            [Proposal(f"{name}, bisected sensitivity", choice) for choice in self._bisected(context)],
        ]

    def _models(self) -> list[tuple[Decision, int]]:
        return [(d, index) for d in self.space.approached(Approach.MODEL) for index in range(1, len(d.options))]

    def _price(self, choice: Choice) -> float:
        return self.seconds(self.space.plan(choice))

    def _fastest_formats(self) -> dict[str, int]:
        """Flips the format of one layer after the other while the predicted time falls: local search on prices."""
        layers = [decision.name for decision in self.space.approached(Approach.FORMAT)]
        best, best_s = dict[str, int](), math.inf
        for start in (*self.space.uniform.values(), {}):
            choice = {name: start.get(name, 0) for name in layers}
            least = self._price(choice)
            improved = True
            while improved:
                improved = False
                for name in layers:
                    for index in range(len(self.space.by_name[name].options)):
                        changed = {**choice, name: index}
                        if index != choice[name] and (seconds := self._price(changed)) < least:
                            choice, least, improved = changed, seconds, True
            if least < best_s:
                best, best_s = choice, least
        return {name: index for name, index in best.items() if index}

    def _tolerated(self, formats: dict[str, int]) -> dict[str, int]:
        """Without the layers that make up most of what a format loses, if it loses anything worth mentioning."""
        total = sum(self.errors[name][index] for name, index in formats.items())
        kept, loss = dict(formats), total
        for name in sorted(formats, key=lambda n: -self.errors[n][formats[n]]):
            if loss <= max(NEARLY_LOSSLESS, total / 4):
                break
            loss -= self.errors[name][kept.pop(name)]
        return kept

    def _dropped(self, context: dict[str, int]) -> list[dict[str, int]]:
        """Branches dropped one after the other, each time the one that loses least per second saved.

        The few that look best by themselves are probed beside those already gone: neighbours' losses don't add up.
        """
        left = [d for d in self.space.approached(Approach.AMOUNT) if self.space.drops(d)]
        chosen, gone, steps = dict(context), dict[str, int](), list[dict[str, int]]()
        start = before = self._price(chosen)
        while left:
            saved = {d.name: before - self._price({**chosen, **_last(d)}) for d in left}
            paying = [d for d in left if saved[d.name] > 0]
            ranked = sorted(paying, key=lambda d: self.errors[d.name][-1] / saved[d.name])[:LOOK_AHEAD]
            if not ranked:
                break
            base = (self.probes.of(gone) or 0.0) if gone else 0.0
            best = min(ranked, key=lambda d: self._extra(gone, d, base) / saved[d.name])
            chosen, gone = chosen | _last(best), gone | _last(best)
            before = self._price(chosen)
            left.remove(best)
            steps.append(dict(chosen))
            if before < FASTEST_SHARE * start:
                break
        return steps

    def _extra(self, gone: dict[str, int], decision: Decision, base: float) -> float:
        """What a further branch adds to the error of those gone; by itself where there is no time to look."""
        together = self.probes.of({**gone, **_last(decision)}) if gone else None
        return self.errors[decision.name][-1] if together is None else max(together - base, 1e-9)

    def _solved(self, context: dict[str, int]) -> list[dict[str, int]]:
        """Least summed error at each rung of a ladder of latencies.

        Times of single decisions don't quite add up, so each plan is priced as a whole and the budget corrected.
        """
        decisions = [d for d in self._structural() if len(d.options) > 1]
        whole = self._price(context)
        times = [[self._price({**context, d.name: i}) - whole for i in range(len(d.options))] for d in decisions]
        solver = Knapsack([self.errors[d.name] for d in decisions], times, 0.0)
        solved = []
        for target in self._ladder(whole):
            asked = target
            for _ in range(_CORRECTIONS):
                picks = solver.choose(asked - whole)
                if picks is None:
                    break
                choice = {**context, **{d.name: i for d, i in zip(decisions, picks, strict=True) if i}}
                found = self._price(choice)
                if found <= target:
                    solved.append(choice)
                    break
                asked -= found - target
        return solved

    def _bisected(self, context: dict[str, int]) -> list[dict[str, int]]:
        """Every decision goes as far as one threshold of error allows; the threshold is bisected for each latency.

        FastNAS (NVIDIA Model Optimizer) searches so; the plan gets no slower as the threshold grows.
        """
        decisions = self._structural()
        finite = [e for d in decisions for e in self.errors[d.name] if e > 0]
        if not finite:
            return []

        def at(threshold: float) -> dict[str, int]:
            strongest = {d.name: sum(e <= threshold for e in self.errors[d.name]) - 1 for d in decisions}
            return {**context, **{name: index for name, index in strongest.items() if index}}

        found = []
        for target in self._ladder(self._price(context)):
            low, high = 0.0, max(finite)
            if self._price(at(high)) > target:
                break
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                low, high = (low, middle) if self._price(at(middle)) <= target else (middle, high)
            found.append(at(high))
        return found

    def _structural(self) -> list[Decision]:
        return list(self.space.approached(Approach.AMOUNT, Approach.REPLACEMENT))

    def _ladder(self, whole: float) -> list[float]:
        """Latencies from just below `whole`, or the budget, to FASTEST_SHARE of it; denser where little is lost."""
        start = min(whole, self.budget_s or whole)
        gain = 1 / FASTEST_SHARE - 1
        ladder = [start / (1 + gain * (i / self.rungs) ** DENSER_MILD) for i in range(self.rungs + 1)]
        return ladder if start < whole else ladder[1:]


def fastest_choice(space: Space, seconds: Callable[[Plan], float]) -> dict[str, int]:
    """Every decision at its fastest: from the strongest of each, one after the other improved until none helps."""
    choice = {d.name: len(d.options) - 1 for d in space.decisions}
    least = seconds(space.plan(choice))
    improved = True
    while improved:
        improved = False
        for decision in space.decisions:
            for index in range(len(decision.options)):
                changed = {**choice, decision.name: index}
                if (found := seconds(space.plan(changed))) < least:
                    choice, least, improved = changed, found, True
    return choice


def _last(decision: Decision) -> dict[str, int]:
    return {decision.name: len(decision.options) - 1}


def _distinct(space: Space, proposals: Sequence[Proposal]) -> list[Proposal]:
    first: dict[str, Proposal] = {}
    for proposal in proposals:
        first.setdefault(space.plan(proposal.choice).key, proposal)
    return list(first.values())
