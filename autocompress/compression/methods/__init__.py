"""Compression methods: found by their entry points, a file each, in the order in which a plan's stages are applied."""

from functools import cache

from autocompress.compression.methods.method import Config, Method
from autocompress.vocabulary import plugins
from autocompress.vocabulary.errors import ConfigError, PluginError, nearest


@cache
def methods() -> tuple[Method, ...]:
    """All methods in stage order, those of one stage by name."""
    found = [_made(name) for name in plugins.names(plugins.METHODS)]
    return tuple(sorted(found, key=lambda method: (method.stage, method.name)))


def method_of(config_type: type[Config]) -> Method:
    """The method whose decisions are of this type."""
    try:
        return _by_config()[config_type]
    except KeyError:
        raise ConfigError(
            f"{config_type.__name__} is a decision of no installed method; installed: {', '.join(_by_name())}"
        ) from None


def method_named(name: str) -> Method:
    """Raises ConfigError, naming the nearest."""
    if name not in _by_name():
        raise ConfigError(f"unknown method {name!r} in a plan: {nearest(name, _by_name())}")
    return _by_name()[name]


def _made(name: str) -> Method:
    made = plugins.load(plugins.METHODS, name)
    method = made() if isinstance(made, type) else made
    if not isinstance(method, Method) or method.name != name:
        raise PluginError(
            f"{plugins.owner(plugins.METHODS, name)} declares {plugins.METHODS} {name!r}, which is "
            f"{made!r}; it must be a subclass of Method whose name is {name!r}"
        )
    return method


@cache
def _by_config() -> dict[type[Config], Method]:
    return {method.config: method for method in methods()}


@cache
def _by_name() -> dict[str, Method]:
    return {method.name: method for method in methods()}
