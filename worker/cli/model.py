"""``streaminfer model``: what versions a model has in its repository, and which one the configuration means."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker import settings as configuration
from worker.cli.main import add_set_option
from worker.errors import ConfigError, StartError
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.model.repository import Candidate, Repository

EXAMPLE = """\
example:
  streaminfer model digits.yaml list"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show the versions of the models that come from a repository."
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file")
    parser.add_argument("verb", choices=["list"], help="list: every version, and whether it counts")
    parser.add_argument("--pipeline", metavar="NAME", help="only this pipeline")
    parser.add_argument("--json", action="store_true", help="one JSON object per version")
    add_set_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print one line for each version, the newest first.

    Raises:
        WorkerError: no pipeline has a repository, or a repository cannot be read.
    """
    from worker.serving.versions import repository_of, wanted

    settings = configuration.load(args.config, args.overrides)
    found = False
    for name in _pipelines(settings, args.pipeline):
        repository = repository_of(settings, name)
        if repository is None:
            continue
        found = True
        for row in _rows(name, repository, wanted(settings, name)):
            print(json.dumps(row, ensure_ascii=False) if args.json else _line(row))
    if not found:
        raise ConfigError("no pipeline has model.repository: there are no versions to list")
    return 0


def _pipelines(settings: Settings, wanted: str | None) -> list[str]:
    if wanted is None:
        return [*settings.pipelines]
    if wanted not in settings.pipelines:
        raise ConfigError(f"--pipeline: got {wanted}, expected one of {', '.join(settings.pipelines)}")
    return [wanted]


def _rows(pipeline: str, repository: Repository, wanted: str) -> list[dict[str, Any]]:
    try:
        meant: Candidate | None = repository.find(wanted)
    except StartError:
        meant = None
    names = {version: alias for alias, version in repository.aliases().items()}
    return [
        {
            "pipeline": pipeline,
            "version": each.version.name,
            "wanted": meant is not None and each.folder == meant.folder,
            "alias": names.get(each.version.name),
            "bytes": each.nbytes,
            "complete": each.incomplete is None,
            "reason": each.incomplete,
        }
        for each in repository.versions()
    ]


def _line(row: dict[str, Any]) -> str:
    mark = "*" if row["wanted"] else " "
    alias = f" ({row['alias']})" if row["alias"] else ""
    state = f"{row['bytes']:,} bytes" if row["complete"] else f"does not count: {row['reason']}"
    return f"{mark} {row['pipeline']} {row['version']}{alias}: {state}"
