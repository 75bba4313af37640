"""The search space: every decision about a model as one parameter whose values are the decisions themselves."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from autocompress.compression.methods import method_of
from autocompress.compression.methods.method import Approach, Config, Kind, Method, Scope, Value, Void
from autocompress.compression.plan import Plan, Step
from autocompress.graph.types import Graph
from autocompress.vocabulary.workload import Capabilities

Choice = Mapping[str, int]
"""Decision name → position among its options; decisions that are left out take their first, mildest option."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One parameter. `options` go from mildest to strongest, the first leaves the target alone; `values` name them."""

    name: str
    target: str
    method: type[Config]
    options: tuple[Config | None, ...]
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if len(self.options) != len(self.values) or len(set(self.values)) != len(self.values):
            raise ValueError(f"{self.name}: every option needs a value of its own, found {self.values}")
        if self.options[0] is not None:
            raise ValueError(f"{self.name}: the first option must leave the target alone")

    @property
    def by(self) -> Method:
        return method_of(self.method)

    @property
    def distribution(self) -> BaseDistribution:
        """A range where the values are evenly spaced numbers that the method means as such, so that samplers see their
        order."""
        if self.by.kind is Kind.INTEGER and (step := _even_step(self.values)):
            return IntDistribution(int(min(self.values)), int(max(self.values)), step=int(step))
        if self.by.kind is Kind.FLOAT and (step := _even_step(self.values)):
            return FloatDistribution(float(min(self.values)), float(max(self.values)), step=step)
        return CategoricalDistribution(self.values)

    def position(self, value: Any) -> int:
        """Of the option that a stored value stands for; of numbers in steps the nearest."""
        if value in self.values or self.by.kind is not Kind.FLOAT:
            return self.values.index(value)
        return min(range(len(self.values)), key=lambda index: abs(float(self.values[index]) - value))


def _even_step(values: Sequence[Value]) -> float | None:
    """The distance of evenly spaced numbers; None for others, and for a single one."""
    ordered = sorted(value for value in values if not isinstance(value, str))
    steps = [after - before for before, after in pairwise(ordered)]
    even = len(ordered) == len(values) and steps and all(math.isclose(step, steps[0], rel_tol=1e-9) for step in steps)
    return steps[0] if even else None


@dataclass(frozen=True, slots=True)
class Effect:
    """What a step settles beside its target: how narrow groups get, what is void, and, where another model stands in,
    the layers of that."""

    widths: Mapping[str, int] = field(default_factory=dict)
    void: Void = field(default_factory=Void)
    stands: frozenset[str] | None = None


def effects(graph: Graph) -> Callable[[Step], Effect]:
    """The effects of steps about this model, each found once."""

    @cache
    def effect(step: Step) -> Effect:
        method = method_of(type(step.config))
        own = method.stand_in(step.config, graph)
        if own is not None:
            return Effect(stands=frozenset(own.layers))
        found = method.widths(step.target, step.config, graph)
        return Effect(found, method.void(step.target, step.config, graph))

    return effect


@dataclass(frozen=True, slots=True)
class Slowing:
    """An option that is not offered: with it a model takes `factor` times as long, at best, as with the next milder one
    that is offered (1: just as long)."""

    decision: str
    value: Value
    factor: float


@dataclass(frozen=True)
class Space:
    """All decisions about one model, in stage order.

    `channels` are the widths of the free groups, `effect` what each step settles beside its target. `elsewhere` are the
    layers that only models have which may stand in: nothing but their number formats is decided. `always` are the steps
    that hardware leaves no choice about.
    """

    fingerprint: str
    decisions: tuple[Decision, ...]
    channels: Mapping[str, int] = field(default_factory=dict)
    effect: Callable[[Step], Effect] = lambda step: Effect()
    elsewhere: frozenset[str] = frozenset()
    slowing: tuple[Slowing, ...] = ()
    always: tuple[Step, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Decision]:
        return {decision.name: decision for decision in self.decisions}

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {decision.name: decision.distribution for decision in self.decisions}

    def of(self, method: type[Config]) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if decision.method is method)

    def approached(self, *approaches: Approach) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if decision.by.approach in approaches)

    @cached_property
    def uniform(self) -> dict[Value, dict[str, int]]:
        """Number format → the choice in which all layers that can be are in it, and the others as they are."""
        found: dict[Value, dict[str, int]] = {}
        for decision in self.approached(Approach.FORMAT):
            for index, value in enumerate(decision.values[1:], start=1):
                found.setdefault(value, {})[decision.name] = index
        return found

    def drops(self, decision: Decision) -> bool:
        """Whether its strongest option leaves nothing of a group, so that a residual branch goes."""
        strongest = decision.options[-1]
        return strongest is not None and 0 in self.effect(Step(decision.target, strongest)).widths.values()

    def plan(self, choice: Choice) -> Plan:
        """The canonical plan of a choice: equal models give equal plans."""
        steps = [
            Step(self.by_name[name].target, config)
            for name, index in choice.items()
            if (config := self.by_name[name].options[index]) is not None
        ]
        return self.canonical(Plan(self.fingerprint, tuple(steps)))

    def choice(self, plan: Plan) -> dict[str, int]:
        """The choice that gives this plan, every decision named. Steps outside the space are left out."""
        configs = {(type(step.config), step.target): step.config for step in plan.steps}
        return {d.name: _position(d, configs.get((d.method, d.target))) for d in self.decisions}

    def values(self, choice: Choice) -> dict[str, Value]:
        """Parameters as Optuna stores them."""
        return {decision.name: decision.values[choice.get(decision.name, 0)] for decision in self.decisions}

    def from_values(self, values: Mapping[str, Any]) -> dict[str, int]:
        return {name: self.by_name[name].position(value) for name, value in values.items()}

    def canonical(self, plan: Plan) -> Plan:
        """The plan without the steps that change nothing: decisions to keep what is there, decisions about what another
        one makes void, and widths that are narrower already by decisions of earlier stages; with the steps that every
        plan has."""
        given = {(type(step.config), step.target) for step in plan.steps}
        forced = tuple(step for step in self.always if (type(step.config), step.target) not in given)
        plan = Plan(plan.fingerprint, (*plan.steps, *forced))
        found = [self.effect(step) for step in plan.steps]
        stands = next((effect.stands for effect in found if effect.stands is not None), None)
        if stands is not None:
            return Plan(plan.fingerprint, tuple(self._standing(plan.steps, found, stands)))
        return Plan(plan.fingerprint, tuple(self._mattering(plan.steps, found)))

    def _mattering(self, steps: Sequence[Step], found: Sequence[Effect]) -> Iterator[Step]:
        lost = {
            Scope.LAYER: self.elsewhere.union(*(effect.void.layers for effect in found)),
            Scope.GROUP: frozenset[str]().union(*(effect.void.groups for effect in found)),
            Scope.MODEL: frozenset[str](),
        }
        narrowest = dict(self.channels)
        for step, effect in zip(steps, found, strict=True):
            method = method_of(type(step.config))
            wide = effect.widths and all(width >= narrowest.get(g, math.inf) for g, width in effect.widths.items())
            if not wide and not method.is_idle(step.config) and step.target not in lost[method.scope]:
                yield step
            narrowest |= {g: min(width, narrowest.get(g, width)) for g, width in effect.widths.items()}

    def _standing(self, steps: Sequence[Step], found: Sequence[Effect], layers: frozenset[str]) -> Iterator[Step]:
        """What stands in, and the formats of its layers."""
        for step, effect in zip(steps, found, strict=True):
            method = method_of(type(step.config))
            formats = method.approach is Approach.FORMAT and step.target in layers and not method.is_idle(step.config)
            if effect.stands is not None or formats:
                yield step

    def document(self) -> dict[str, list[Value]]:
        """Parameter → its values from mildest to strongest, to tell whether a stored study searched the same space."""
        return {decision.name: list(decision.values) for decision in self.decisions}


def find_space(
    graph: Graph,
    methods: Sequence[Method],
    capabilities: Capabilities,
    seconds: Callable[[Plan], Sequence[float]] | None = None,
    decisions: Sequence[str] | None = None,
) -> Space:
    """The decisions that the methods (those named in `decisions`, if given) offer about a traced model on a device.

    `seconds` are the predicted times of a plan on the devices: options that shorten none of them, neither in fp32 nor
    beside another format everywhere, each against the next milder one, are left out. Without it all are offered.
    """
    always = _forced(graph, methods, capabilities)
    settled = {type(step.config) for step in always}
    offered = [m for m in methods if m.config not in settled and (decisions is None or m.name in decisions)]
    found = [_decision(method, target, graph, capabilities) for method in offered for target in method.targets(graph)]
    found += _formats_elsewhere(graph, offered, capabilities)
    elsewhere = (
        frozenset(layer for student in graph.students.values() for layer in student.layers) - graph.layers.keys()
    )
    space = Space(
        graph.fingerprint,
        _open(found),
        {name: group.channels for name, group in graph.free_groups.items()},
        effects(graph),
        elsewhere,
        always=always,
    )
    if seconds is None:
        return space
    slowing: list[Slowing] = []
    paying = [_paying(d, space, _contexts(space), seconds, slowing) for d in space.decisions]
    return replace(space, decisions=_open(paying), slowing=tuple(slowing))


def single_plans(space: Space) -> Iterator[Plan]:
    """Every option by itself, in fp32 and beside each other format everywhere."""
    for context in _contexts(space):
        for decision in space.decisions:
            for index in range(len(decision.options)):
                yield space.plan({**context, decision.name: index})


def _contexts(space: Space) -> list[dict[str, int]]:
    """What everything else is looked at beside: the layers as they are, and each other format everywhere."""
    return [{}, *space.uniform.values()]


def _open(decisions: Iterable[Decision]) -> tuple[Decision, ...]:
    return tuple(decision for decision in decisions if len(decision.options) > 1)


def _decision(method: Method, target: str, graph: Graph, capabilities: Capabilities) -> Decision:
    options = tuple(method.options(target, graph, capabilities))
    values = tuple(method.value(target, option, graph) for option in options)
    return Decision(f"{method.name}:{target}", target, method.config, options, values)


def _formats_elsewhere(graph: Graph, methods: Sequence[Method], capabilities: Capabilities) -> list[Decision]:
    """Number formats of the layers that only the task's own students have."""
    found: dict[str, Decision] = {}
    for student in graph.students.values():
        for method in methods:
            if method.approach is Approach.FORMAT:
                for target in set(method.targets(student)) - graph.layers.keys():
                    decision = _decision(method, target, student, capabilities)
                    found[decision.name] = decision
    return [found[name] for name in sorted(found)]


def _forced(graph: Graph, methods: Sequence[Method], capabilities: Capabilities) -> tuple[Step, ...]:
    """What hardware leaves no choice about: a format of every layer, where it has no other."""
    found = {
        (method.stage, method.name, target): Step(target, config)
        for method in methods
        for traced in (graph, *graph.students.values())
        for target in method.targets(traced)
        if (config := method.forced(target, traced, capabilities)) is not None
    }
    return tuple(found[place] for place in sorted(found))


def _paying(
    decision: Decision,
    space: Space,
    contexts: list[dict[str, int]],
    seconds: Callable[[Plan], Sequence[float]],
    slowing: list[Slowing],
) -> Decision:
    """The decision with the options that pay. Other models, and their formats, are not seen from here."""
    if decision.by.approach is Approach.MODEL or decision.target in space.elsewhere:
        return decision

    def times_with(index: int) -> list[float]:
        return [time for context in contexts for time in seconds(space.plan({**context, decision.name: index}))]

    times = [times_with(index) for index in range(len(decision.options))]
    kept = [0]
    for index in range(1, len(times)):
        factor = min(now / before for now, before in zip(times[index], times[kept[-1]], strict=True))
        if factor < 1:
            kept.append(index)
        else:
            slowing.append(Slowing(decision.name, decision.values[index], factor))
    options = tuple(decision.options[i] for i in kept)
    values = tuple(decision.values[i] for i in kept)
    return Decision(decision.name, decision.target, decision.method, options, values)


def _position(decision: Decision, config: Config | None) -> int:
    return decision.options.index(config) if config in decision.options else 0
