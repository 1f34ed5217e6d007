"""The ``luthier`` command: which verbs there are, and how an error leaves the house.

A verb's module is imported only when that verb is called, so ``luthier --help`` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import typer

from luthier import environment
from luthier.cli.output import print_problem
from luthier.errors import LuthierError

#: verb → (module of luthier.cli, what it does). A module holds ``app``, a Typer.
VERBS = {
    "demo": ("demo", "Tune a real text encoder, and show what it gained."),
    "fit": ("jobs", "Submit a fine-tuning run."),
    "validate": ("jobs", "Check a job, and say everything that is wrong with it."),
    "search": ("search", "Search for the values that make the best model."),
    "trials": ("search", "What a search tried, and what came of it."),
    "runs": ("runs", "List, show, follow, cancel, resume, compare, delete runs."),
    "experiments": ("experiments", "Experiments, each with its runs."),
    "models": ("models", "Which pretrained models there are, and what each takes."),
    "component": ("component", "Fine-tune by folders: import, preprocess, finetune, evaluate."),
    "encode": ("encode", "Turn texts into vectors."),
    "encode-corpus": ("encode_corpus", "Encode all items anew: to Parquet or PostgreSQL."),
    "tune": ("tune", "Update a model with new data, without forgetting the old."),
    "drift": ("drift", "Has the data changed? Skip, update or retrain."),
    "clicks": ("clicks", "Logs of searches: import, show, bias, simulate, tune; tasks."),
    "worker": ("worker", "Execute runs until stopped."),
    "bench": ("bench", "luthier beside its peers; updaters beside one another."),
    "env": ("env", "What luthier finds on this machine."),
}

EXIT_CODES = """\
Exit codes: 0 done · 1 error · 2 wrong usage or a job that cannot run · 3 data · 4 model ·
5 an optional package is missing · 6 not found · 7 conflict or not possible in this state ·
8 lease lost · 9 store · 10 unsafe location · 11 the run failed · 12 the run was cancelled ·
70 a fault in luthier itself · 130 Ctrl-C
"""

USAGE_ERROR = 2
FAULT = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point of the ``luthier`` command. Always ends in SystemExit."""
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(words: list[str]) -> int:
    """Carry out one command line; the result is its exit code."""
    try:
        result = _app(words)(args=words, prog_name="luthier", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except LuthierError as error:
        return _report(error, words)
    except typer.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left (``| head``). Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1  # as Typer does where it notices first
    except Exception as error:
        return _usage_error(error, words) if _is_usage_error(error) else _fault(error, words)


def _app(words: list[str]) -> typer.Typer:
    """The application, with the module of the called verb in it and a line for each other."""
    app = typer.Typer(
        help="Tune a pretrained model on your data, and get the proof that it is better.",
        epilog=EXIT_CODES,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        no_args_is_help=True,
    )
    app.callback()(_options)
    called = next((word for word in words if not word.startswith("-")), None)
    for verb, (module, summary) in VERBS.items():
        if verb != called:
            app.command(verb, help=summary)(_not_called)
            continue
        verbs = import_module(f"luthier.cli.{module}").app
        if any(command.name == verb for command in verbs.registered_commands):
            app.registered_commands += [c for c in verbs.registered_commands if c.name == verb]
        else:
            app.add_typer(verbs, name=verb, help=summary)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        from luthier import __version__

        typer.echo(f"luthier {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """What stands before the verb."""


def _not_called() -> None:
    """Stands in the list of verbs; the one that is called is always the real one."""


def _report(error: LuthierError, words: list[str]) -> int:
    if os.environ.get(environment.DEBUG):
        traceback.print_exc()
    print_problem(error.problem(), str(error), "--json" in words)
    return error.exit_code


# Typer gave up click as a dependency and carries its own copy; what stays the same in both
# is that a usage error is an ancestor of BadParameter and can format itself.
_USAGE_ERRORS = tuple(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _is_usage_error(error: Exception) -> bool:
    return isinstance(error, _USAGE_ERRORS)


def _usage_error(error: Exception, words: list[str]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # the message is the help itself
        print(error, file=sys.stderr)
        return USAGE_ERROR
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    hint = f"see {context.command_path} --help" if context is not None else "see luthier --help"
    problem = {
        "type": "urn:luthier:usage",
        "title": message,
        "code": "usage",
        "where": None,
        "hint": hint,
        "retryable": False,
    }
    print_problem(problem, f"{message}\n  hint: {hint}", "--json" in words)
    return USAGE_ERROR


def _fault(error: Exception, words: list[str]) -> int:
    """An error that luthier did not foresee: said as such, in one line, with a way to see more."""
    if os.environ.get(environment.DEBUG):
        traceback.print_exc()
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{type(error).__name__}: {error}"
    hint = f"a fault in luthier, please report it; {environment.DEBUG}=1 shows the traceback"
    problem = {
        "type": "urn:luthier:fault",
        "title": message,
        "code": "fault",
        "where": f"{os.path.basename(last.filename)}:{last.lineno}",
        "hint": hint,
        "retryable": False,
    }
    print_problem(problem, f"{message}\n  hint: {hint}", "--json" in words)
    return FAULT
