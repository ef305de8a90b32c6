"""From argv and a YAML file to checked options: flags win over YAML, YAML over defaults.

pydantic-settings makes the flags out of the option models; this module adds the job name, the file, and errors
that fit on one line and name the nearest key.
"""

import argparse
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from ray_jobs.cli.shorthand import MODELS, lend_models, take_models, with_sections
from shards.errors import UsageError

ALWAYS_SHOWN = ("--help", "--help-all", "--config", "--print-config")


@dataclass(frozen=True)
class Job:
    """One word after `python -m ray_jobs`.

    Attributes:
        name: the word.
        does: in one line.
        sections: of options that it reads.
        module: of the job, in `ray_jobs`; absent: that of the same name in `ray_jobs.jobs`.
        function: in it; absent: the word.
        first: options of its own section that people set first, which `--help` shows.
        needs: options of its own section without which it cannot run, and what they are.
    """

    name: str
    does: str
    sections: Mapping[str, type[BaseModel]]
    module: str = ""
    function: str = ""
    first: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)

    def require(self, options: Mapping[str, BaseModel]) -> None:
        """Raise UsageError where an option that it needs is empty."""
        for name, what in self.needs.items():
            if not getattr(options[self.name], name):
                raise UsageError(f"{self.name}.{name} is needed: {what}")

    def load(self) -> Callable[..., int]:
        """The job's function; imported now, since a usage error or --help should not wait for ray and torch."""
        module = import_module(f"ray_jobs.{self.module or f'jobs.{self.name}'}")
        function: Callable[..., int] = getattr(module, self.function or self.name)
        return function


@dataclass(frozen=True)
class Invocation:
    """A parsed command line.

    Attributes:
        job: the job asked for.
        options: its sections, checked, by name.
        print_config: whether to print the options instead of running.
    """

    job: str
    options: Mapping[str, BaseModel]
    print_config: bool


class _Parser(argparse.ArgumentParser):
    """argparse with errors as exceptions, so that one place words them."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(argv: Sequence[str], jobs: Mapping[str, Job]) -> Invocation:
    """Parse a command line.

    Args:
        argv: the words after `python -m ray_jobs`.
        jobs: every job there is, by name.

    Returns:
        the job and its checked options.

    Raises:
        UsageError: unknown job, key or value, or an unreadable file; one line each.
    """
    for word in argv:
        if word.encode(errors="ignore").decode() != word:  # surrogates stand for bytes that are not UTF-8
            raise UsageError(
                f"{word!a}: is not UTF-8, which neither Ray nor JSON takes; rename what it names"
            )
    job = _job_of(argv, jobs)
    settings_class = _settings_class(job)
    parser = _Parser(prog=f"python -m ray_jobs {job.name}", description=job.does, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with the sections below; flags win over it"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved options and stop")
    parser.add_argument("--help-all", action="help", help="show every option and stop")
    flags = CliSettingsSource[BaseSettings](settings_class, root_parser=parser, cli_hide_none_type=True)
    if "--help-all" not in argv:
        _hide_all_but(parser, [f"--{job.name}.{field}" for field in job.first])
    words = with_sections(_join_negative_values(argv[1:]), job.name, job.sections)
    config = _config_file(words)
    from_file = _read_yaml(config, job, jobs) if config else {}
    words, models = take_models(words, from_file)
    lend_models(models, words, from_file, job.sections)
    parsed, unknown = parser.parse_known_args(words)
    if unknown:
        raise UsageError(_unknown_flag(unknown[0], job, jobs))
    try:
        settings = settings_class(_cli_settings_source=flags(parsed_args=parsed), **from_file)
    except ValidationError as error:
        raise UsageError(_one_line(error)) from None
    except SettingsError as error:
        raise UsageError(str(error)) from None
    options = {name: getattr(settings, name) for name in job.sections}
    return Invocation(job.name, options, parsed.print_config)


def _job_of(argv: Sequence[str], jobs: Mapping[str, Job]) -> Job:
    """The job that the first word names; help and version end the process."""
    if not argv or argv[0] in ("-h", "--help", "--version"):
        top = _Parser(prog="python -m ray_jobs", description=_overview(jobs), allow_abbrev=False,
                      formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        top.add_argument("job", choices=list(jobs), metavar="JOB")
        top.add_argument(
            "--version", action="version", version=f"zimage-projector {version('z-image-projector')}"
        )
        top.parse_args(list(argv[:1]) or ["--help"])
    if argv[0] not in jobs:
        raise UsageError(f"unknown job {argv[0]!r}{_nearest(argv[0], jobs)}; the jobs are {', '.join(jobs)}")
    return jobs[argv[0]]


def as_yaml(options: Mapping[str, BaseModel]) -> str:
    """The options as YAML that `--config` reads back to the same options."""
    tree = {name: section.model_dump(mode="json") for name, section in options.items()}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _settings_class(job: Job) -> type[BaseSettings]:
    """A settings class with one field per section; a section left out is checked like an empty one."""
    fields: dict[str, Any] = {
        name: (section, Field(default_factory=dict, validate_default=True))
        for name, section in job.sections.items()
    }

    class FlagsThenFile(BaseSettings):
        model_config = SettingsConfigDict(extra="forbid", cli_exit_on_error=False)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            # No environment variables but those of `take_models`: what a run does is in its flags and file.
            return (init_settings,)

    return create_model(f"{job.name.title()}Settings", __base__=FlagsThenFile, **fields)


def _hide_all_but(parser: argparse.ArgumentParser, first: Sequence[str]) -> None:
    """Leave options out of the help that nobody sets at first; they work all the same."""
    if not first:
        return
    for action in parser._actions:
        if not {*action.option_strings} & {*first, *ALWAYS_SHOWN}:
            action.help = argparse.SUPPRESS
    parser.epilog = "Shown are the options that people set first; --help-all lists every one."


def _config_file(words: Sequence[str]) -> str:
    """The value of `--config`, which is read before the other flags are parsed; empty where there is none."""
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    config.add_argument("--config", default="")
    try:
        return str(config.parse_known_args(list(words))[0].config)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None


def _join_negative_values(argv: Sequence[str]) -> list[str]:
    """`--build.layers -8,-6` as one word: argparse would take `-8,-6` for a flag."""
    joined: list[str] = []
    for word in argv:
        if re.match(r"-\d", word) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _read_yaml(path: str, job: Job, jobs: Mapping[str, Job]) -> dict[str, Any]:
    """The job's own sections of the file; sections of other jobs are checked for unknown keys only."""
    if Path(path).exists() and not Path(path).is_file():  # a pipe may never end
        raise UsageError(f"--config {path}: is no plain file; give a YAML file")
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {path}: cannot be read as YAML: {reason}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"--config {path}: expected sections such as `build:`, found {type(tree).__name__}")
    known = {name: model for each in jobs.values() for name, model in each.sections.items()}
    for name, section in tree.items():
        if name == MODELS:
            continue
        if name not in known:
            raise UsageError(
                f"--config {path}: unknown section {name!r}{_nearest(str(name), known)}; sections: {', '.join(known)}"
            )
        if not isinstance(section, dict):
            raise UsageError(f"--config {path}: section {name!r} holds {section!r}; expected keys and values")
        for key in section:
            if key not in known[name].model_fields:
                fields = known[name].model_fields
                raise UsageError(
                    f"--config {path}: unknown key {name}.{key}{_nearest(str(key), fields, f'{name}.')}; "
                    f"python -m ray_jobs {job.name} --help lists them"
                )
    return {name: section for name, section in tree.items() if name in job.sections or name == MODELS}


def _unknown_flag(word: str, job: Job, jobs: Mapping[str, Job]) -> str:
    flag = word.split("=")[0].removeprefix("--")
    if not word.startswith("--"):
        return f"unexpected word {word!r}; every option is --section.field value"
    mine = list(_flags(job.sections))
    others = list(_flags({name: model for each in jobs.values() for name, model in each.sections.items()}))
    hint = _nearest(flag, mine, "--") or _nearest(flag, others, "--")
    return f"unknown option --{flag}{hint}; python -m ray_jobs {job.name} --help lists them"


def _flags(sections: Mapping[str, type[BaseModel]]) -> Iterator[str]:
    yield from ("config", "print-config")
    for name, section in sections.items():
        yield from (f"{name}.{field}" for field in section.model_fields)


def _nearest(word: str, known: Any, prefix: str = "") -> str:
    """`; did you mean …?` with the nearest known word, or nothing when none is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{matches[0]}?" if matches else ""


def _one_line(error: ValidationError) -> str:
    """The first problem of a validation error: where, the value, what is wrong."""
    problems = error.errors()
    first = next((problem for problem in problems if problem["type"] == "missing"), problems[0])
    # A union adds the branch it tried, such as literal['tiny'] or a class name: no key a user could type.
    where = ".".join(str(part) for part in first["loc"] if re.fullmatch(r"[a-z0-9_]+", str(part)))
    if first["type"] == "missing":
        return f"{where} is needed and was not given; pass --{where} VALUE or set it in the --config file"
    message = first["msg"].removeprefix("Value error, ")
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where} = {first['input']!r}: {message}{more}"


def _overview(jobs: Mapping[str, Job]) -> str:
    width = max(map(len, jobs))
    lines = "\n".join(f"  {job.name:<{width}}  {job.does}" for job in jobs.values())
    return f"Jobs:\n{lines}\n\npython -m ray_jobs JOB --help lists a job's options."
