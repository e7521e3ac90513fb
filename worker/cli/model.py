"""``streaminfer model``: the versions of models, and what is decided of them for all replicas."""

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
    from worker.model.repository import Candidate, Versions

EXAMPLE = """\
examples:
  streaminfer model digits.yaml list
  streaminfer model digits.yaml status
  streaminfer model digits.yaml start 3 --mode canary --share 0.2
  streaminfer model digits.yaml rollback
  streaminfer model digits.yaml pin 2"""
VERBS = """\
list              every version in the repository, and whether it counts
status            which version answers, the rollout that runs, what was decided last
start VERSION     try a version on a share of the keys, or beside the one that answers; of the version that is
                  being tried: give it a larger share
promote           the version that is being tried answers everything
rollback          the version that is being tried is taken back
pin VERSION       this version answers everything, and no new one is tried
unpin             new versions are tried again; the pinned one goes on answering until then"""
WITH_VERSION = ("start", "pin")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the versions of the models that come from a repository, and decide which one answers.\n\n"
        + VERBS
    )
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file")
    parser.add_argument(
        "verb",
        metavar="VERB",
        choices=["list", "status", "start", "promote", "rollback", "pin", "unpin"],
        help="list, status, start, promote, rollback, pin or unpin",
    )
    parser.add_argument("version", metavar="VERSION", nargs="?", help="of start and pin")
    parser.add_argument("--pipeline", metavar="NAME", help="only this pipeline")
    parser.add_argument("--mode", choices=["canary", "shadow"], help="of start; default: rollout.mode")
    parser.add_argument(
        "--share", metavar="S", type=float, help="of start: share of the keys, default: rollout.share"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    add_set_option(parser)


def run(args: argparse.Namespace) -> int:
    """Do what the verb says.

    Raises:
        WorkerError: no pipeline has a repository, it cannot be read, or the verb does not fit what is there.
    """
    settings = configuration.load(args.config, args.overrides)
    if (args.version is None) == (args.verb in WITH_VERSION):
        raise ConfigError(f"{args.verb}: expected {'a version' if args.version is None else 'no version'}")
    if args.verb != "start" and (args.mode or args.share is not None):
        raise ConfigError(f"--mode and --share: go with start, got {args.verb}")
    if args.verb != "list":
        from worker.cli import model_control  # loads the Kafka client

        return model_control.run(settings, args)
    return _list(settings, args)


def _list(settings: Settings, args: argparse.Namespace) -> int:
    """Print one line for each version, the newest first."""
    from worker.serving.versions import repository_of, wanted

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


def _rows(pipeline: str, repository: Versions, wanted: str) -> list[dict[str, Any]]:
    try:
        meant: Candidate | None = repository.find(wanted)
    except StartError:
        meant = None
    names = {version: alias for alias, version in repository.aliases().items()}
    return [
        {
            "pipeline": pipeline,
            "version": each.version.name,
            "wanted": meant is not None and each.version.name == meant.version.name,
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
