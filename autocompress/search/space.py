"""The search space: every decision about a model as one parameter whose values are the decisions themselves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from autocompress.compression.methods import Method
from autocompress.compression.methods.configs import Config, LowRank, Prune, Quantize, Student
from autocompress.compression.methods.student import student_keep
from autocompress.compression.plan import Plan, Step
from autocompress.graph.types import Branch, Graph
from autocompress.search.config import DECISIONS
from autocompress.vocabulary.workload import Capabilities, DType

Value = int | float | str
"""What a parameter is in Optuna's storage: channels kept, a width, a number format, a factorisation."""

Choice = Mapping[str, int]
"""Decision name → position among its options; decisions that are left out take their first, mildest option."""

UNFACTORISED = "whole"


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
    def distribution(self) -> BaseDistribution:
        """An integer range where the values are evenly spaced integers, so that samplers see their order."""
        if all(isinstance(value, int) for value in self.values):
            ordered = sorted(int(value) for value in self.values)
            steps = {after - before for before, after in pairwise(ordered)}
            if len(steps) == 1:
                return IntDistribution(ordered[0], ordered[-1], step=steps.pop())
        return CategoricalDistribution(self.values)


@dataclass(frozen=True, slots=True)
class Gone:
    """What a residual branch takes with it."""

    layers: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()


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

    `channels` are the widths of the free groups, `students` what each of them keeps in a student, and `gone` what goes
    with a group's last channel. `own_students` are the layers of each student that the task brings itself: nothing but
    their number formats is decided further. `elsewhere` are the layers that only such students have.
    """

    fingerprint: str
    decisions: tuple[Decision, ...]
    channels: Mapping[str, int] = field(default_factory=dict)
    students: Mapping[Student, Mapping[str, int]] = field(default_factory=dict)
    gone: Mapping[str, Gone] = field(default_factory=dict)
    own_students: Mapping[Student, frozenset[str]] = field(default_factory=dict)
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
        return {name: self.by_name[name].values.index(value) for name, value in values.items()}

    def canonical(self, plan: Plan) -> Plan:
        """The plan without the steps that change nothing: decisions to keep what is there, decisions about what a
        dropped branch takes with it, and widths that the student's narrower ones decide already; with the steps that
        every plan has."""
        given = {(type(step.config), step.target) for step in plan.steps}
        forced = tuple(step for step in self.always if (type(step.config), step.target) not in given)
        plan = Plan(plan.fingerprint, (*plan.steps, *forced))
        student = next(iter(plan.configs(Student).values()), None)
        if student is not None and student in self.own_students:
            return self._standing(plan, self.own_students[student])
        widths = self.students.get(student, {}) if student else {}
        dropped = [self.gone[g] for g, c in plan.configs(Prune).items() if c.keep == 0 and g in self.gone]
        lost_layers = self.elsewhere.union(*(gone.layers for gone in dropped))
        lost_groups = frozenset[str]().union(*(gone.groups for gone in dropped))

        def matters(step: Step) -> bool:
            config, target = step.config, step.target
            if isinstance(config, Prune):
                limit = widths.get(target, self.channels.get(target, config.keep + 1))
                return config.keep < limit and target not in lost_groups
            if isinstance(config, Quantize):
                return config.dtype is not DType.FP32 and target not in lost_layers
            return isinstance(config, Student) or target not in lost_layers

        return Plan(plan.fingerprint, tuple(step for step in plan.steps if matters(step)))

    def _standing(self, plan: Plan, layers: frozenset[str]) -> Plan:
        def matters(step: Step) -> bool:
            config = step.config
            if isinstance(config, Quantize):
                return config.dtype is not DType.FP32 and step.target in layers
            return isinstance(config, Student)

        return Plan(plan.fingerprint, tuple(step for step in plan.steps if matters(step)))

    def document(self) -> dict[str, list[Value]]:
        """Parameter → its values from mildest to strongest, to tell whether a stored study searched the same space."""
        return {decision.name: list(decision.values) for decision in self.decisions}


def find_space(
    graph: Graph,
    methods: Sequence[Method],
    capabilities: Capabilities,
    seconds: Callable[[Plan], Sequence[float]] | None = None,
    decisions: Sequence[str] = DECISIONS,
) -> Space:
    """The decisions that the methods offer about a traced model on a device.

    `seconds` are the predicted times of a plan on the devices: options that shorten none of them, neither in fp32 nor
    beside int8 everywhere, each against the next milder one, are left out. Without it all are offered.
    """
    always = _only_format(graph, methods, capabilities)
    if always:
        decisions = [kind for kind in decisions if kind != "quantize"]
    found = [
        _decision(method, target, method.options(target, graph, capabilities), graph)
        for method in methods
        if _KINDS[method.config] in decisions
        for target in method.targets(graph)
    ]
    if "quantize" in decisions:
        found += _formats_elsewhere(graph, methods, capabilities)
    space = replace(_space(graph, [decision for decision in found if len(decision.options) > 1]), always=always)
    if seconds is None:
        return space
    contexts = [{}, {d.name: 1 for d in space.of(Quantize)}]
    slowing: list[Slowing] = []
    paying = [_paying(d, space, contexts, seconds, slowing) for d in space.decisions]
    return replace(
        _space(graph, [decision for decision in paying if len(decision.options) > 1]),
        slowing=tuple(slowing),
        always=always,
    )


def single_plans(space: Space) -> Iterator[Plan]:
    """Every option by itself, in fp32 and beside int8 everywhere."""
    for context in ({}, {d.name: 1 for d in space.of(Quantize)}):
        for decision in space.decisions:
            for index in range(len(decision.options)):
                yield space.plan({**context, decision.name: index})


_KINDS: dict[type[Config], str] = {Student: "student", Prune: "prune", LowRank: "low_rank", Quantize: "quantize"}


def _decision(method: Method, target: str, options: tuple[Config | None, ...], graph: Graph) -> Decision:
    values = tuple(_value(option, target, method.config, graph) for option in options)
    return Decision(f"{_KINDS[method.config]}:{target}", target, method.config, options, values)


def _value(option: Config | None, target: str, method: type[Config], graph: Graph) -> Value:
    if isinstance(option, Prune):
        return option.keep
    if isinstance(option, Student):
        return option.width
    if isinstance(option, LowRank):
        return f"{option.kind}:{option.rank}"
    if isinstance(option, Quantize):
        return option.dtype.value
    untouched: dict[type[Config], Value] = {Student: 1.0, LowRank: UNFACTORISED, Quantize: DType.FP32.value}
    return graph.groups[target].channels if method is Prune else untouched[method]


def _formats_elsewhere(graph: Graph, methods: Sequence[Method], capabilities: Capabilities) -> list[Decision]:
    """Number formats of the layers that only the task's own students have."""
    found: dict[str, Decision] = {}
    for student in graph.students.values():
        for method in methods:
            if method.config is Quantize:
                for target in set(method.targets(student)) - graph.layers.keys():
                    options = method.options(target, student, capabilities)
                    found[target] = _decision(method, target, options, student)
    return [found[target] for target in sorted(found)]


def _only_format(graph: Graph, methods: Sequence[Method], capabilities: Capabilities) -> tuple[Step, ...]:
    """What every layer computes in on hardware without fp32."""
    if DType.FP32 in capabilities.dtypes:
        return ()
    targets = {
        target
        for method in methods
        if method.config is Quantize
        for traced in (graph, *graph.students.values())
        for target in method.targets(traced)
    }
    return tuple(Step(target, Quantize(DType.INT8)) for target in sorted(targets))


def _space(graph: Graph, decisions: Sequence[Decision]) -> Space:
    students = [option for d in decisions for option in d.options if isinstance(option, Student)]
    own = {student: frozenset(graph.students[student.width].layers) for student in students if graph.students}
    return Space(
        graph.fingerprint,
        tuple(decisions),
        {name: group.channels for name, group in graph.free_groups.items()},
        {student: student_keep(graph, student.width) for student in students if student not in own},
        {name: _gone(graph, name, graph.branches[g.branch]) for name, g in graph.free_groups.items() if g.branch},
        own,
        frozenset[str]().union(*own.values()) - graph.layers.keys(),
    )


def _gone(graph: Graph, dropping: str, branch: Branch) -> Gone:
    """Everything inside the branch, but not the decision that drops it."""
    node_of = {str(n.target): n.name for n in graph.model.graph.nodes if n.op == "call_module"}
    inside = {
        name
        for name, group in graph.free_groups.items()
        if name != dropping and all(node_of.get(member.target) in branch.nodes for member in group.members)
    }
    return Gone(frozenset(branch.layers), frozenset(inside))


def _paying(
    decision: Decision,
    space: Space,
    contexts: list[dict[str, int]],
    seconds: Callable[[Plan], Sequence[float]],
    slowing: list[Slowing],
) -> Decision:
    """The decision with the options that pay. Students are other models, and their formats are not seen from here."""
    if decision.method is Student or decision.target in space.elsewhere:
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
