"""`main`: flags, the run's folder and exit codes of an experiment binary."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from maxpo import parallel
from maxpo._extras import MissingExtraError
from maxpo.runs._config import UsageError, flatten, load_config, unknown, variants_of
from maxpo.runs._preemption import GO_ON, Preempted, leave, preemptible
from maxpo.runs._progress import put, say
from maxpo.runs._run import Run

FLAGS = (
    *("--config", "--config.FIELD", "--workdir"),
    *("--distributed", "--coordinator_address", "--num_processes", "--process_id"),
    *("--heartbeat_seconds", "--compilation_cache"),
)
HELP = ("-h", "--help", "--helpshort", "--helpfull")


def main(
    train_and_evaluate: Callable[[ConfigDict, Path], Any],
    *,
    default_config: str,
    argv: Sequence[str] | None = None,
) -> None:
    """Runs an experiment from the command line and exits with its code.

    Exit codes: 0 done, 1 failed, 2 bad usage, 143 (128 + 15) stopped by SIGTERM: saved after the
    step that was running, as `preemptible` has it, and to be started again. A second SIGTERM ends
    the process by that signal, and Ctrl-C (SIGINT) by that one, without a traceback: what was saved
    last stays.

    The flags are `--config=FILE[:VARIANT]`, `--config.FIELD=VALUE` for any field of that config,
    and `--workdir=DIR`; without the last the run gets a time-stamped folder under `runs/`.

    Compiled programs are kept in `JAX_COMPILATION_CACHE_DIR`, or else in `maxpo/programs` under the
    user's cache folder, so that a run that is started again need not compile them again;
    `--nocompilation_cache` switches that off.

    With `--distributed` this process joins the others of a run before anything else; each is
    started with the same command line, but for `--process_id` where JAX does not find it out.

    Mistakes of the user are one sentence on stderr and no traceback: a UsageError or a
    MissingExtraError from anywhere, and a ValueError raised before the experiment opens its `Run`,
    which is where it should check its config. Everything else that goes wrong keeps its traceback.
    A time-stamped folder in which nothing was written is removed, whatever the reason.

    Args:
      train_and_evaluate: called with the config, locked, and the folder.
      default_config: the config file without `--config`, relative to where the program is started.
      argv: the command line, program name first; `sys.argv` if None.
    """
    argv = list(sys.argv if argv is None else argv)
    opened = Run.opened
    created = None
    try:
        spec, rest = _take_config(argv, default_config)
        config = load_config(spec)
        if any(argument in HELP for argument in rest):
            put(_help(spec, config), sys.stdout)
            return
        values = _parse(config, rest)
        if values["compilation_cache"].value:
            _keep_programs()
        if values["distributed"].value:
            _join(values)
        workdir = None if values["workdir"].value is None else Path(values["workdir"].value)
        if workdir is None:
            path, _, variant = spec.partition(":")
            parts = (Path(path).stem, re.sub(r"[^\w.=,-]+", "-", variant))
            workdir = created = new_folder("-".join(part for part in parts if part))
        _check_workdir(workdir.expanduser().absolute())
        # Not before `_join`, in which JAX takes the signal for itself.
        with preemptible():
            train_and_evaluate(config, workdir)
    except Preempted:
        if _kept_unless_empty(created):
            say(f"to go on from there add --workdir={created}")
        if _ends_alone():
            leave(signal.SIGTERM)
        raise
    except KeyboardInterrupt:
        if not _ends_alone():
            raise
        if _kept_unless_empty(created):
            say(f"\ninterrupted; to go on from what was saved last add --workdir={created}")
        elif Run.opened > opened:
            say(f"\ninterrupted; {GO_ON} from what was saved last")
        leave(signal.SIGINT)
    except (ValueError, MissingExtraError) as error:
        if not isinstance(error, UsageError | MissingExtraError) and Run.opened > opened:
            raise
        put(f"error: {error}", sys.stderr)
        raise SystemExit(2) from None
    finally:
        _kept_unless_empty(created)


def _check_workdir(folder: Path) -> None:
    """Refuses a folder that a run could not have, before the work that comes ahead of the run."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise UsageError(f"workdir: expected a folder, got the file {nearest}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"workdir: expected a folder that can be written, got {nearest}")


def _kept_unless_empty(created: Path | None) -> bool:
    """Whether there is a folder that `main` made and that has something in it; removes another."""
    if created is None or not created.is_dir():
        return False
    if not any(created.iterdir()):
        created.rmdir()
        return False
    return True


def _ends_alone() -> bool:
    """Whether nothing comes after `main`: the program called it, and is not part of a pod.

    A pod's processes wait for each other at their end.
    """
    started = sys._getframe(2).f_globals.get("__name__") == "__main__"
    return started and not jax.distributed.is_initialized()


def _take_config(argv: list[str], default: str) -> tuple[str, list[str]]:
    """Returns the last `--config` of the command line, and the line without any."""
    spec = default
    rest = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-config"):
            rest.append(argument)
            continue
        spec = value if equals else next(arguments, "")
        if not spec or spec.startswith("-"):
            raise UsageError("--config needs a file: --config=FILE[:VARIANT]")
    return spec, rest


def _parse(config: ConfigDict, argv: list[str]) -> flags.FlagValues:
    """Sets the fields that the command line overrides, and returns its other flags."""
    known = _fields(config)
    for argument in argv[1:]:
        override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if override is None:
            continue
        name = override[1].split("[")[0]
        if name not in known:
            raise unknown("config field", name, known)
        if isinstance(known[name], list):
            raise UsageError(f"--config.{name} is a list, which only the config file can set")
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
        flags.DEFINE_bool("distributed", False, "join other processes", flag_values=values)
        flags.DEFINE_bool("compilation_cache", True, "keep programs", flag_values=values)
        flags.DEFINE_string("coordinator_address", None, "HOST:PORT", flag_values=values)
        flags.DEFINE_integer("num_processes", None, "of the run", flag_values=values)
        flags.DEFINE_integer("process_id", None, "of this process", flag_values=values)
        flags.DEFINE_integer("heartbeat_seconds", 100, "of silence", flag_values=values)
        unused = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise unknown("flag", f"--{error.flagname}", FLAGS) from error
    except flags.IllegalFlagValueError as error:
        bad = re.match(r"flag --config\.([^=]+)=(.*?): ", str(error), re.DOTALL)
        if bad is None:
            raise UsageError(str(error)) from error
        kind = config_path.get_type(bad[1], config)
        raise _wrong_type(bad[1], kind, known[bad[1]], bad[2]) from error
    except flags.Error as error:
        raise UsageError(str(error)) from error
    if unused:
        raise UsageError(f"expected only flags, got {' '.join(unused)}")
    for name, value in _fields(config).items():
        # The flags of ml_collections take anything for the elements of a tuple.
        old = known.get(name)
        if isinstance(value, tuple) and isinstance(old, tuple) and old:
            kinds = {type(item) for item in old} | ({int} if isinstance(old[0], float) else set())
            if any(type(item) not in kinds for item in value):
                raise _wrong_type(name, tuple, old, value)
    return values


def _join(values: flags.FlagValues) -> None:
    """Joins the other processes; the flags must make sense for several."""
    if values["workdir"].value is None:
        raise UsageError("--distributed needs a --workdir that all processes share")
    parallel.initialize(
        *(values[name].value for name in ("coordinator_address", "num_processes", "process_id")),
        heartbeat_seconds=int(values["heartbeat_seconds"].value or 0),
    )


def _fields(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields under their dotted names, those that hold fields included."""
    fields = flatten(config)
    for name in list(fields):
        while "." in name:
            name = name.rpartition(".")[0]
            fields.setdefault(name, ConfigDict())
    return fields


def _wrong_type(name: str, kind: type, default: Any, value: Any) -> UsageError:
    if kind is ConfigDict:
        expected = "one field at a time"
    elif kind is tuple and default:
        expected = f"a tuple of {type(default[0]).__name__}, like {default!r}"
    else:
        expected = f"a value of type {kind.__name__}, like {default!r}"
    return UsageError(f"--config.{name}: expected {expected}, got {value!r}")


def new_folder(name: str) -> Path:
    """Creates `runs/NAME-YYYYmmdd-HHMMSS`, with a number at its end if there is one already."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while True:
        folder = Path("runs", stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def _keep_programs() -> None:
    """Switches on JAX's persistent compilation cache where nobody has chosen a folder for it."""
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        folder = base / "maxpo" / "programs"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # No home, or no room: programs are compiled each time.
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if settings.jax_persistent_cache_min_compile_time_secs == 1:  # JAX's default.
        # A start has tens of small programs: without them it takes a fifth longer.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _help(spec: str, config: ConfigDict) -> str:
    program = sys.modules["__main__"].__doc__ or ""
    fields = "\n".join(f"  --config.{name}={value}" for name, value in flatten(config).items())
    known = variants_of(spec)
    variants = f"      its variants: {', '.join(known)}\n" if known else ""
    return (
        f"{program.strip()}\n\n  --config=FILE[:VARIANT]  the config, {spec} here\n{variants}"
        f"  --workdir=DIR  the run's folder, a new one under runs/ without it\n"
        f"  --nocompilation_cache  compile all programs, also those of earlier runs\n"
        f"  --distributed  one process of several; where JAX does not find them out also\n"
        f"      --coordinator_address=HOST:PORT --num_processes=N --process_id=I\n"
        f"  --heartbeat_seconds=100  silence of a process after which the others end\n\n{fields}"
    ).lstrip()
