"""Parsers made from the settings, and `run`, with which every script starts and ends.

A script's `main` gets the parsed options; `read(args, Section)` makes the value of a section from them. Anything wrong
with what the user gave is raised as `UserError`, one line; `run` prints that line and exits with the error's code. Of
several processes that torchrun has started, one prints it.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ..errors import Interrupted, RunStopped, UserError
from ..settings import Clouds, Number, Training, declared
from . import types

Section = TypeVar("Section")
Groups = list[tuple[str, list[str]]]  # the name of an option, and the option as it is written with its values


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Says each option's default as it is now, since a data set's schedule changes some (`adopt_recipe`)."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if "(default:" in text or action.nargs == 0 or default in (None, [], argparse.SUPPRESS):
            return text
        shown = ",".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{text} (default: {shown})".lstrip()


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage text."""

    def __init__(self, **kwargs: Any):
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **kwargs)
        self._declared: dict[str, type] = {}  # the section of each option

    def error(self, message: str) -> NoReturn:
        _say(f"{self.prog}: {message} (see {self.prog} --help)")
        sys.exit(UserError.exit_code)

    def add_settings(
        self, title: str | None, section: type, only: Sequence[str] = (), without: Sequence[str] = (), **changed: Any
    ) -> None:
        """Add the options that a section declares, in a group with a title. An option that an earlier section has
        declared too is shared.

        only: these alone; without: all but these. changed: defaults that differ for this script, by name; REQUIRED
        makes an option required, and None one that may be left out.
        """
        known = {action.dest for action in self._actions}
        group = self.add_argument_group(title) if title else self
        fields = {field.name: field.default for field in dataclasses.fields(section)}
        for name, entry in declared(section).items():
            if name in known or name in without or (only and name not in only):
                continue
            default = changed.get(name, fields[name])
            group.add_argument(*entry.flags, f"--{name}", **_argument(entry, default, name in changed))
            self._declared[name] = section

    def adopt_recipe(self, argv: Sequence[str]) -> None:
        """Defaults of schedule and clouds as the data set has them that the command line names."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    command.adopt_recipe(argv)
        if "dataset" not in self._declared:
            return
        asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        asked.add_argument("--dataset", nargs="?")
        recipe = types.recipe(asked.parse_known_args(list(argv))[0].dataset)
        if recipe is not None:
            own: dict[type, dict[str, Any]] = {Training: vars(Training.of(recipe)), Clouds: vars(Clouds.of(recipe))}
            known = [name for name, section in self._declared.items() if section in own]
            self.set_defaults(**{name: own[self._declared[name]][name] for name in known})

    def add_config(self) -> None:
        """Add --config, which `written_out` replaces by the options of an earlier run."""
        self.add_argument(
            "--config",
            metavar="FILE",
            help="args.json of an earlier run, whose options are taken; those given beside it win",
        )

    def written_out(self, argv: Sequence[str]) -> list[str]:
        """The command line with the options of --config FILE in place of it, before those given."""
        if "--config" not in self._option_string_actions:
            return list(argv)
        groups = self._groups(argv)
        given = [text for option, texts in groups if option != "config" for text in texts]
        replaced = {option: _values(texts) for option, texts in groups}
        for option, texts in groups:
            if option != "config":
                continue
            path = " ".join(texts).removeprefix("--config")[1:]
            if not path:
                return list(argv)  # which the parser refuses
            earlier = self._groups(self._configured(Path(path)))
            if "trial" in replaced and "name" not in replaced:
                earlier = _of_trial(replaced["trial"], earlier, path)
            given = [text for option, texts in earlier if option not in replaced for text in texts] + given
        return given

    def _groups(self, argv: Sequence[str]) -> Groups:
        """A command line by its options, in its order."""
        groups: Groups = []
        for text in argv:
            action = self._option_string_actions.get(text.split("=")[0])
            if action is None and not text.startswith("--"):
                action = self._option_string_actions.get(text[:2])  # -d5
            if action is not None:
                groups.append((action.dest, [text]))
            elif groups:
                groups[-1][1].append(text)
            else:
                groups.append(("", [text]))  # no option, which the parser refuses
        return groups

    def _configured(self, path: Path) -> list[str]:
        """The options of the command that args.json holds."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            text = content["command"]
            command = shlex.split(text) if isinstance(text, str) else []
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or "it holds no command"
            raise UserError(f"--config: {path} is not the args.json of a run ({reason})") from None
        if command[1:2] != [self.prog]:
            raise UserError(
                f"--config: {path} is of {' '.join(command[1:2]) or 'nothing'}, expected one of {self.prog}"
            )
        return command[2:]


def _values(texts: Sequence[str]) -> list[str]:
    """The values of an option as it is written: --name run, --name=run."""
    return [*texts[0].split("=", 1)[1:], *texts[1:]]


def _of_trial(trial: list[str], earlier: Groups, path: str) -> Groups:
    """The options of an earlier run for another of its trials, whose number replaces that in the run's own name.

    path: where the options are from. UserError for a name that does not end with its trial.
    """
    values = {option: _values(texts) for option, texts in earlier}
    name, old = " ".join(values.get("name", [])), values.get("trial", ["1"])
    if not name or old == trial:
        return earlier
    end = f"_trial{' '.join(old)}"
    if not name.endswith(end) or len(trial) != 1:
        raise UserError(
            f"--trial: found {' '.join(trial)}, but the run of {path} was given the name {name}; give one trial and "
            "another --name"
        )
    renamed = ("name", ["--name", f"{name.removesuffix(end)}_trial{trial[0]}"])
    return [renamed if option == "name" else (option, texts) for option, texts in earlier]


def _argument(entry: Any, default: Any, is_changed: bool) -> dict[str, Any]:
    """The keywords of add_argument for a declaration."""
    text = entry.help
    if entry.kind == "flag":
        return {"action": "store_true", "help": text}
    options: dict[str, Any] = {"metavar": entry.metavar}
    if default is dataclasses.MISSING and entry.kind != "device":
        options["required"] = True
    else:
        options["default"] = types.default_device() if entry.kind == "device" else default
    if entry.many:
        options["nargs"] = "+"
        if options.get("default") is not None:
            options["default"] = list(options["default"])
    if isinstance(entry.kind, Number):
        options["type"] = types.number(entry.kind)
    elif isinstance(entry.kind, tuple):
        options["choices"] = list(entry.kind)
    elif entry.kind == "dataset":
        options["choices"] = types.dataset_names()
    else:
        options["type"] = types.TYPES[entry.kind]
    if entry.kind == "method":
        text = f"{text}: {types.method_help()}"
    if is_changed:  # the declared text tells the declared default
        text = text.split(" (default:")[0]
    options["help"] = text
    return options


class Listing(argparse.Action):
    """An option that prints the text that a function makes, and exits."""

    def __init__(self, option_strings, dest, text: Callable[[], str], **kwargs):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)
        self.text = text

    def __call__(self, parser, namespace, values, option_string=None):
        print(self.text(), flush=True)
        parser.exit()


def read(args: argparse.Namespace, section: type[Section], **changed: Any) -> Section:
    """The value of a section from the parsed options. Options that the script has not take their defaults. changed:
    values that replace those given."""
    given = {name: getattr(args, name) for name in declared(section) if hasattr(args, name)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return section(**given | changed)


def exact_kernels() -> None:
    """For all scripts alike: cuDNN's kernels repeat themselves, and float32 is not rounded to TF32 unasked."""
    import torch

    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def run(main: Callable[[argparse.Namespace], None], make_parser: Callable[[], Parser], several: bool = False) -> None:
    """Parse the command line, call `main(args)`, and turn a UserError into its one line and exit code. Ends quietly,
    with exit code 1, when nobody reads its output any more.

    several: whether the script can be started by torchrun, in several processes.
    """
    program = os.path.basename(sys.argv[0])
    _open_streams()
    try:
        if _launched():
            _run_by_torchrun(main, make_parser, several)
        else:
            _parse_and_run(main, make_parser)
        return
    except BrokenPipeError:  # nobody reads on, as after `| head`
        code = 1
    except UserError as error:
        _say(f"{program}: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        _say(f"{program}: interrupted; what was finished is kept")
        code = Interrupted.exit_code
    except OSError as error:
        if error.filename is not None:  # a file of which nobody has said what is wrong with it
            _say(f"{program}: {error.filename}: {error.strerror}")
        else:
            _say(f"{program}: cannot write its output: {error.strerror}")
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _silence(stream)  # the interpreter must not write to it at its end either
    sys.exit(code)


def _launched() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _run_by_torchrun(
    main: Callable[[argparse.Namespace], None], make_parser: Callable[[], Parser], several: bool
) -> None:
    from .. import distributed  # with torch, which what only reads tables does not load

    distributed.meet()
    if not several:
        raise UserError("runs in one process; start it without torchrun")

    def joined(args: argparse.Namespace) -> None:
        args.device = distributed.join(args.device)
        if hasattr(args, "resume"):
            args.resume = args.resume or distributed.restarted()
        main(args)

    try:
        _parse_and_run(joined, make_parser)
    except RuntimeError as error:
        if not distributed.is_broken(error):
            raise
        if distributed.rank() > 0:
            sys.exit(RunStopped.exit_code)
        raise RunStopped("another process of this run has ended; what was saved before is intact") from None
    distributed.leave()


def _parse_and_run(main: Callable[[argparse.Namespace], None], make_parser: Callable[[], Parser]) -> None:
    parser = make_parser()
    sys.argv[1:] = parser.written_out(sys.argv[1:])  # so that the command which a run records is complete
    try:
        parser.adopt_recipe(sys.argv[1:])
        args = parser.parse_args()
    except SystemExit:
        sys.stdout.flush()  # the text of --help, which the interpreter would find unwritable only at its end
        raise
    if "torch" in sys.modules:  # what only reads tables does not load it
        exact_kernels()
        if getattr(args, "num_threads", None):
            sys.modules["torch"].set_num_threads(args.num_threads)
    main(args)
    sys.stdout.flush()


def _open_streams() -> None:
    """Output that is closed goes nowhere, and a character that a terminal cannot show is replaced."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", errors="replace"))
        elif hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError):  # of a stream whose descriptor has been replaced
                stream.reconfigure(errors="replace")


def _silence(stream: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(line: str) -> None:
    """Print a last line, which several processes may have found."""

    def write() -> None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)

    if not _launched():
        write()
        return
    from .. import distributed

    distributed.once(write)
