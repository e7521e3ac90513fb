"""``streaminfer run``: the worker, or several under a small supervisor."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from worker.cli.main import add_set_option
from worker.errors import ConfigError

if TYPE_CHECKING:
    from worker.process.replica import Orders
    from worker.process.signals import Stop
    from worker.settings import Settings
    from worker.settings.current import Current

_ENTRY = [
    *(sys.executable, "-P", "-c"),
    "import sys; sys.path.append(sys.argv.pop(1)); from worker.__main__ import main; sys.exit(main())",
]
"""How a replica is started; the folder of this package follows. Not by ``-m worker``: a file of the user's called
worker.py in the current directory would be taken for this package."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Read records, run the model, publish predictions. SIGTERM or SIGINT drains, a second one stops now. "
        "SIGHUP reads the configuration again: what may change while the worker runs is taken over, and the rest is named."
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
    parser.add_argument(
        "--watch",
        action="store_true",
        help="read the configuration again whenever its file changes, as SIGHUP does",
    )
    parser.add_argument("--replica-index", type=int, default=None, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run one worker, or supervise several.

    Raises:
        WorkerError: see its exit code.
    """
    from worker.process.signals import listening

    with listening() as stop:
        if args.replica_index is None:
            return _run(args, stop, None)
        from worker.process.replica import take_orders

        orders = take_orders()
        args.overrides = orders.overrides
        return _run(args, stop, orders)


def _run(args: argparse.Namespace, stop: Stop, orders: Orders | None) -> int:
    # imported here, because importing takes most of the time before the worker listens to signals
    from worker.settings import places_of
    from worker.settings.current import read_current

    if args.replicas is not None and args.replicas < 1:
        raise ConfigError(f"--replicas: got {args.replicas}, expected at least 1")

    def read() -> Current:
        return read_current(args.config, args.overrides).of_replica(args.replica_index)

    now = read()
    with places_of(now.settings):
        return _with_settings(args, stop, orders, now, read)


def _with_settings(
    args: argparse.Namespace, stop: Stop, orders: Orders | None, now: Current, read: Callable[[], Current]
) -> int:
    from worker.settings import check_replicas
    from worker.telemetry import logs

    check_replicas(now.settings, args.replicas or 1)
    logs.configure(now.settings.secrets(), level=now.settings.log.level)
    if args.replica_index is not None or args.replicas is not None:
        logs.bind(replica=args.replica_index)
    logs.bind(pid=os.getpid(), group=now.settings.kafka["group.id"])
    if args.replica_index is None:
        _warn_of_plaintext(now.settings)
        if args.watch:
            _watch(now, read, stop)
    if args.replicas is not None:
        return _supervise(args, stop)
    from worker import app
    from worker.process.run import run as run_worker

    return run_worker(args.replica_index, lambda index: app.build(now, index, orders, read), stop)


def _watch(now: Current, read: Callable[[], Current], stop: Stop) -> None:
    """Have the configuration read again when a file of it changes, or that of a key. One process watches for all replicas."""
    from worker.process.file_watch import FileWatch

    files = now.files

    def changed() -> None:
        with suppress(ConfigError):  # whoever reads the file again says what is wrong with it
            files[:] = read().files
        stop.reread()

    watch = FileWatch(lambda: [*files], changed)
    with suppress(ConfigError):
        if read().digest != now.digest:  # it changed between being read and being watched
            stop.reread()
    watch.start()


def _supervise(args: argparse.Namespace, stop: Stop) -> int:
    from worker.process.replica import Replica
    from worker.process.supervisor import Supervisor

    command = [*_ENTRY, str(Path(__file__).parents[2]), "run", str(args.config), "--replica-index"]
    supervisor = Supervisor(
        lambda index, died: Replica([*command, str(index)], args.overrides, died), args.replicas
    )
    stop.give_to(supervisor.on_signal)
    stop.read_again(supervisor.read_again)
    return supervisor.run()


def _warn_of_plaintext(settings: Settings) -> None:
    from worker.settings import plaintext_hosts
    from worker.telemetry import logs

    if hosts := plaintext_hosts(settings):
        logs.get(__name__).warning(
            "the connection to Kafka is not encrypted",
            hosts=hosts,
            protocol=settings.kafka.get("security.protocol", "plaintext"),
        )
