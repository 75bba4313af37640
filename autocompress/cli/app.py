"""The command line: every verb parses, makes one library call and prints; libraries are imported when a verb runs."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from autocompress.vocabulary.errors import AutocompressError, ConfigError, nearest

DEFAULT_DEVICE = "ort:cpu"
_INTERRUPTED = 130

app = typer.Typer(
    name="autocompress",
    help="From a trained PyTorch model and a latency to keep, to a verified Pareto front of ONNX models.",
    epilog="Start with `autocompress demo`; then name your own TASK as path/to/file.py:task.",
    add_completion=False,
    pretty_exceptions_enable=False,
    suggest_commands=False,
)

TaskName = Annotated[str, typer.Argument(help="path/to/file.py:task or package.module:task", show_default=False)]
RunPath = Annotated[Path, typer.Argument(help="the folder of a search (its --out)", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print machine-readable results")]
ProfileNames = Annotated[
    list[str] | None, typer.Option("--profile", help="hardware profile: a name or a folder; may be given again")
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 for failures, 2 for the user's mistakes."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _warn  # type: ignore[assignment]  # the place is of no use to users
            return _run([word for word in given if word != "--debug"] or ["--help"])
    except (AutocompressError, typer.TyperException) as error:
        if debug:
            raise
        return _told(_explained(error), error.exit_code)
    except KeyboardInterrupt:
        return _told("interrupted", _INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())
        return _told(f"unexpected {type(error).__name__}: {text[:300]}; --debug shows where", 1)


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    verbs = getattr(command, "commands", {})
    if not arguments[0].startswith("-") and arguments[0] not in verbs:
        raise ConfigError(f"no command {arguments[0]!r}; {nearest(arguments[0], verbs)}")
    code = command.main(arguments, prog_name="autocompress", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _warn(message: Warning | str, category: type[Warning], *place: object) -> None:
    """One line for this package's warnings; those of others concern whoever develops it, and --debug shows them."""
    if category.__module__.startswith("autocompress"):
        _told(f"warning: {message}", 0)


def _told(line: str, code: int) -> int:
    print(f"autocompress: {line}", file=sys.stderr)
    return code


def _explained(error: Exception) -> str:
    """One line; for an unknown flag, with the nearest one that there is."""
    flag = getattr(error, "option_name", None)
    context = getattr(error, "ctx", None)
    if flag is None or context is None or not hasattr(error, "possibilities"):
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        return " ".join(text.split())
    valid = [name for param in context.command.params for name in param.opts if name.startswith("--")]
    return f"no flag {flag!r} of {context.command_path!r}; {nearest(flag, [*valid, '--help', '--debug'])}"


def _json(document: Any) -> None:
    print(json.dumps(document, indent=1, default=str))


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error (with any command)")] = False,
) -> None:
    """The flags of all commands; `--debug` is taken out by `main`, and stands here for --help."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the model and the run")] = Path("autocompress-demo"),
    time: Annotated[float, typer.Option(help="seconds for the search, training comes on top")] = 180.0,
    as_json: Json = False,
) -> None:
    """Train a small residual network on scikit-learn's digits, compress it, and report: a few minutes on two cores."""
    from autocompress.cli import terminal
    from autocompress.cli.demo import run_demo

    with terminal.watching(quiet=as_json) as progress:
        study = run_demo(out, time, progress)
    _show_study(study, as_json)


@app.command()
def devices(
    task: Annotated[str | None, typer.Option(help="time this task's model, untouched, on all that are usable")] = None,
    as_json: Json = False,
) -> None:
    """List every runtime, usable or why not and what to install, and the hardware profiles at hand."""
    from dataclasses import asdict

    from autocompress.cli import terminal
    from autocompress.devices import list_devices
    from autocompress.profiles import descriptions

    if task:
        from autocompress.report.runtimes import time_everywhere
        from autocompress.task.loading import load_task

        timed = time_everywhere(load_task(task))
        _json([asdict(row) for row in timed]) if as_json else terminal.show(terminal.runtimes_table(timed))
        return
    rows = list_devices()
    if as_json:
        _json([asdict(row) for row in rows])
    else:
        terminal.show(terminal.devices_table(rows), terminal.profiles_table(descriptions()))


@app.command()
def inspect(
    task: TaskName,
    profile: Annotated[
        str | None, typer.Option(help="hardware profile that prices the kernels; one of ort:cpu otherwise")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show layers, channel groups, what is left alone and why, and where the time goes."""
    from autocompress.cli import terminal
    from autocompress.profiles import load as load_profile
    from autocompress.profiles import profile_of
    from autocompress.report.inspection import inspect_task
    from autocompress.task.loading import load_task

    with terminal.telling(quiet=as_json):
        found = inspect_task(load_task(task), load_profile(profile) if profile else profile_of(DEFAULT_DEVICE))
    _json(found.to_dict()) if as_json else terminal.show(terminal.inspection_view(found))


@app.command()
def search(
    task: TaskName,
    out: Annotated[Path, typer.Option(help="the run's folder; an unfinished run there is resumed", show_default=False)],
    config: Annotated[Path | None, typer.Option(help="RUN.toml with settings; flags win over it")] = None,
    profile: ProfileNames = None,
    objective: Annotated[
        str | None,
        typer.Option(help="of several profiles: worst (default), best (runtimes of one machine), each"),
    ] = None,
    budget_ms: Annotated[float | None, typer.Option(help="latency to keep, in milliseconds")] = None,
    speedup: Annotated[
        float | None, typer.Option(help="latency to keep, as a multiple of the original's speed")
    ] = None,
    max_drop: Annotated[float | None, typer.Option(help="most that the score may fall: 0.01 is one point")] = None,
    max_size: Annotated[int | None, typer.Option(help="most bytes that a model's file may have")] = None,
    trials: Annotated[int | None, typer.Option(help="stop after so many candidates")] = None,
    time: Annotated[float | None, typer.Option(help="seconds in all, verification included")] = None,
    workers: Annotated[int | None, typer.Option(help="processes that score candidates, 1 by default")] = None,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL instead of the run's own journal")] = None,
    seed: Annotated[int | None, typer.Option(help="same seed, same proposals; 0 by default")] = None,
    as_json: Json = False,
) -> None:
    """Search for the best compressed models of TASK and write them, verified, to a folder."""
    from autocompress.cli import terminal
    from autocompress.report import write_report
    from autocompress.search import search as run_search
    from autocompress.search.config import load_settings
    from autocompress.task.loading import load_task

    settings = load_settings(config)
    loaded = load_task(task)
    with terminal.watching(quiet=as_json) as progress:
        study = run_search(
            loaded, profile=profile, objective=objective, budget_ms=budget_ms, speedup=speedup, max_drop=max_drop,
            max_size_bytes=max_size,
            trials=trials, time_s=time, workers=workers, storage=storage, seed=seed, out=out,
            settings=settings, progress=progress,
        )  # fmt: skip
    write_report(study.path)
    _show_study(study, as_json)


@app.command()
def export(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="file to write, such as model.onnx", show_default=False)],
    budget_ms: Annotated[float | None, typer.Option(help="best model that was measured to keep this")] = None,
    max_drop: Annotated[float | None, typer.Option(help="fastest model that loses no more than this")] = None,
    pick: Annotated[str | None, typer.Option(help="'knee', or the id of a model")] = None,
    as_json: Json = False,
) -> None:
    """Write the best Pareto model of a run, with its card."""
    from dataclasses import asdict

    from autocompress.cli import terminal
    from autocompress.search import load

    study = load(run)
    if pick:
        chosen = study.knee() if pick == "knee" else study[pick]
    else:
        chosen = study.best(budget_ms=budget_ms, max_drop=max_drop)
    artifact = study.export(chosen, out)
    if as_json:
        _json({"id": chosen.id, **asdict(artifact)})
    else:
        terminal.show(terminal.front_table([chosen], study.baseline), f"written to {artifact.path}")


@app.command()
def verify(
    artifact: Annotated[
        Path, typer.Argument(help="an exported .onnx file with its card beside it", show_default=False)
    ],
    task: Annotated[str, typer.Option(help="the task that it was made from", show_default=False)],
    device: Annotated[str, typer.Option(help="where to run it, see `autocompress devices`")] = DEFAULT_DEVICE,
    as_json: Json = False,
) -> None:
    """Check a model against its card: parity, score, measured time, and what ran each node."""
    from dataclasses import asdict

    from autocompress.cli import terminal
    from autocompress.evidence.verify import verify as run_verify
    from autocompress.task.loading import load_task

    with terminal.counting("batches scored", quiet=as_json) as count:
        found = run_verify(artifact, load_task(task), device, progress=count)
    if as_json:
        _json({**asdict(found), "passed": found.passed, "speedup": found.speedup})
    else:
        terminal.show(terminal.verification_view(found))
    found.require()


@app.command()
def report(run: RunPath, as_json: Json = False) -> None:
    """Write RUN/report.html: one self-contained page."""
    from autocompress.report import write_report

    path = write_report(run)
    _json({"report": path}) if as_json else print(path)


@app.command()
def compare(
    run: RunPath,
    profile: ProfileNames = None,
    task: Annotated[str | None, typer.Option(help="the task, for a run that was killed before its end")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="most score that a chosen model may lose; the run's own")
    ] = None,
    budget_ms: Annotated[float | None, typer.Option(help="latency that a chosen model has to keep there")] = None,
    as_json: Json = False,
) -> None:
    """Put one run's models on several devices: ranks, fronts, and what a choice made for the wrong device costs."""
    from autocompress.cli import terminal
    from autocompress.profiles import load as load_profile
    from autocompress.report import write_report
    from autocompress.report.compare import compare as run_compare
    from autocompress.task.loading import load_task

    profiles = {found.name: found for found in map(load_profile, profile or [])}
    found = run_compare(run, profiles, max_drop, budget_ms, load_task(task) if task else None)
    write_report(run)
    _json(found.to_dict()) if as_json else terminal.show(terminal.comparison_view(found))


@app.command()
def profile(
    device: Annotated[
        str, typer.Argument(help="a device of `autocompress devices`, such as ort:cpu", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="folder for the profile", show_default=False)],
    task: Annotated[str | None, typer.Option(help="task whose model is measured; the demo's otherwise")] = None,
    known: Annotated[
        list[str] | None,
        typer.Option("--from", help="learn it from this profile of another device; may be repeated"),
    ] = None,
    models: Annotated[int, typer.Option(help="with --from: models to measure on the new device")] = 10,
    as_json: Json = False,
) -> None:
    """Measure a device, fit its latency predictor, and report its error on held-out models; resumes in --out."""
    from dataclasses import asdict
    from shutil import rmtree

    from autocompress.cli import terminal
    from autocompress.cli.demo import untrained_task
    from autocompress.profiles import load
    from autocompress.profiles.accuracy import accuracy_of
    from autocompress.search.profiling import onboard_task, profile_task
    from autocompress.task.loading import load_task

    unfinished = out / "unfinished"
    with terminal.counting("steps, building models and measuring them", quiet=as_json) as count:
        loaded = load_task(task) if task else untrained_task()
        if known:
            found = onboard_task(loaded, device, [load(name) for name in known], models=models, progress=count)
        else:
            found = profile_task(loaded, device, progress=count, resume_dir=unfinished)
    found.save(out)
    rmtree(unfinished, ignore_errors=True)
    accuracy = None if known else accuracy_of(found)
    interval = found.typical_interval()
    if as_json:
        judged = asdict(accuracy) if accuracy else {}
        _json({"profile": out, "device": found.device, "typical_interval": interval, **judged})
        return
    told = f"{found.description.origin}; typical interval ±{interval:.1%}"
    parts = [terminal.accuracy_view(accuracy), told] if accuracy else [told]
    terminal.show(*parts, f"written to {out}; use it with --profile {out}")


def _show_study(study: Any, as_json: bool) -> None:
    from autocompress.cli import terminal

    if as_json:
        print(study.to_frame().reset_index().to_json(orient="records", indent=1))
        return
    terminal.show(terminal.study_view(study))
