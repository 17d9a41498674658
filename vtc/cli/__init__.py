"""The ``vtc`` command: a table of verbs, each in a module of its own that is imported when it is called.

Data goes to stdout, progress and errors to stderr. Every error that vtc understands becomes one line (a
recipe's, one a fault) and the exit code of its kind; a traceback needs ``vtc --debug``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import click

from vtc.cli.faults import describe
from vtc.cli.noise import quiet_libraries
from vtc.cli.output import note, say
from vtc.cli.signals import Stopped, stopped_by_signals
from vtc.cli.streams import CLOSED_PIPE, ReaderLeft, safe_streams
from vtc.errors import InputError
from vtc.shown import line

VERBS: dict[str, tuple[str, str, str]] = {
    "ls": ("vtc.cli.ls", "command", "List models, selectors, projectors, recipes or targets."),
    "inspect": (
        "vtc.cli.inspect",
        "command",
        "Show what a recipe comes to on a model: tokens, FLOPs, KV bytes.",
    ),
    "check": ("vtc.cli.check", "command", "Validate a recipe, and with --smoke the whole pipeline on it."),
    "calibrate": ("vtc.cli.calibrate", "command", "Measure who uses which expert of a mixture of experts."),
    "place": ("vtc.cli.place", "command", "Place the experts of a mixture on devices, by who uses them."),
    "compress": ("vtc.cli.compress", "command", "Apply a recipe to a model and calibrate it."),
    "export": ("vtc.cli.export", "command", "Write a compressed model as an ONNX bundle, and prove parity."),
    "optimize": ("vtc.cli.optimize", "command", "Add variants to a bundle that run faster on a CPU or a GPU."),
    "build": ("vtc.cli.build", "command", "Build TensorRT engines of a bundle, with or without a GPU."),
    "run": ("vtc.cli.run", "command", "Ask a bundle about images; needs neither torch nor transformers."),
    "show": ("vtc.cli.show", "command", "Draw the visual tokens that a recipe keeps."),
    "validate": ("vtc.cli.validate", "command", "Judge accuracy and fidelity against the original; a gate."),
    "bench": ("vtc.cli.bench", "command", "Measure latency and memory, side by side with the original."),
    "doctor": ("vtc.cli.doctor", "command", "Tell what is installed, what works here, what to install."),
}
"""Verb → module, attribute, short help, which stands here so that ``vtc --help`` imports no verb."""

INTERRUPTED = 130


class Verbs(click.Group):
    """The group of verbs: imports them lazily, and turns what they raise into a line and an exit code."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command as a process does: with streams and signals made safe, and an exit code at the end."""
        run: Callable[[], Any] = partial(super().main, *args, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        with stopped_by_signals():
            sys.exit(_exit_code(run))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the verbs in the order in which a user meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name not in VERBS:
            return None
        module, attribute, _ = VERBS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        # Docstrings are raw, so click's mark for a paragraph that keeps its lines arrives as two characters.
        command.help = (command.help or "").replace("\\b\n", "\b\n")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, short_help) for name, (_, _, short_help) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or name the nearest."""
        if args[0] not in VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(VERBS)}"
            raise click.UsageError(f"no verb '{args[0]}', {hint}", ctx)
        return super().resolve_command(ctx, args)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the options before the verb."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            _fail(_usage_line(error), error.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        debug = bool(ctx.params.get("debug"))
        try:
            _check_directory()
            with contextlib.nullcontext() if debug else quiet_libraries():
                return super().invoke(ctx)
        except click.UsageError as error:
            _fail(_usage_line(error), error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort, ReaderLeft):
            raise  # click knows what to do with these
        except KeyboardInterrupt:
            _fail("interrupted", INTERRUPTED)
        except Exception as error:
            if debug:
                import traceback

                traceback.print_exc()
            _fail(*describe(error))


def _exit_code(run: Callable[[], Any]) -> int:
    """Run a command; tell of what ends it early."""
    with safe_streams():
        try:
            code = run()
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except ReaderLeft:
            return CLOSED_PIPE
        except click.Abort:
            message, code = "interrupted", INTERRUPTED
        except Stopped as stopped:
            message, code = str(stopped), stopped.exit_code
        except click.ClickException as error:
            message, code = line(f"error: {error.format_message()}"), error.exit_code
        except Exception as error:  # of the options before the verb, or of what was left to be written
            message, code = describe(error)
        note(message)
        return code


def _check_directory() -> None:
    """Refuse to work in a directory that has been removed: libraries end such a process with words of their own."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the current directory does not exist any more; go to another (cd)") from None


def _usage_line(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx else "vtc"
    message = " ".join(error.format_message().split()).rstrip(".")
    return line(f"{command}: {message} ({command} --help)")


def _fail(message: str, code: int) -> NoReturn:
    note(message)
    raise click.exceptions.Exit(code)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from vtc.runtime.versions import vtc_version

        say(f"vtc {vtc_version()}")
        ctx.exit()


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""MODEL: 'reference' or a checkpoint directory. RECIPE: a shipped name or a .yaml file.

Completion with the tab key: add eval "$(_VTC_COMPLETE=bash_source vtc)" to ~/.bashrc, or zsh_source to ~/.zshrc.""",
)
@click.option("--debug", is_flag=True, envvar="VTC_DEBUG", help="Show the traceback of an error.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Visual token compression: make a vision-language model cheaper by a recipe, and prove what it kept."""
    if ctx.invoked_subcommand is None:
        say(ctx.get_help())
