"""``streaminfer run``: the worker, or several under a small supervisor."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from worker.cli.main import add_set_option
from worker.errors import ConfigError

if TYPE_CHECKING:
    from worker.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Read records, run the model, publish predictions. SIGTERM or SIGINT drains, a second one stops now."
    )
    parser.epilog = "example: streaminfer run digits.yaml --replicas 2 --set batching.max_size=32"
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file")
    add_set_option(parser)
    parser.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="so many processes, each restarted when it dies (default: this one)",
    )
    parser.add_argument("--replica-index", type=int, default=None, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run one worker, or supervise several.

    Raises:
        WorkerError: see its exit code.
    """
    with _leaving_when_asked():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    # imported here, because importing takes most of the time before the worker's own handlers are there
    from worker.settings import check_replicas, load
    from worker.telemetry import logs

    if args.replicas is not None and args.replicas < 1:
        raise ConfigError(f"--replicas: got {args.replicas}, expected at least 1")
    settings = load(args.config, args.overrides)
    check_replicas(settings, args.replicas or 1)
    logs.configure(settings.secrets())
    if args.replica_index is None:
        _warn_of_plaintext(settings)
    if args.replicas is not None:
        from worker.process.supervisor import supervise

        return supervise(lambda index: _replica(args, index), args.replicas)
    if args.replica_index is not None:
        from worker.process.supervisor import die_with_parent

        die_with_parent()
    from worker import app
    from worker.process.run import run as run_worker

    return run_worker(settings, args.replica_index, app.build)


@contextmanager
def _leaving_when_asked() -> Iterator[None]:
    """Until the worker or the supervisor has handlers of its own, nothing is taken: SIGTERM and SIGINT end with 0."""
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: os._exit(0)) for number in signals}
    # whoever started us may have handed its mask down: a blocked SIGTERM would never drain worker or supervisor
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _warn_of_plaintext(settings: Settings) -> None:
    from worker.settings import plaintext_hosts
    from worker.telemetry import logs

    if hosts := plaintext_hosts(settings):
        logs.get(__name__).warning(
            f"the connection to {', '.join(hosts)} is not encrypted: "
            f"kafka.security.protocol is {settings.kafka.get('security.protocol', 'plaintext')}"
        )


def _replica(args: argparse.Namespace, index: int) -> list[str]:
    """The command line of one replica."""
    overrides = [part for override in args.overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "worker", "run", str(args.config), *overrides]
    return [*command, "--replica-index", str(index)]
