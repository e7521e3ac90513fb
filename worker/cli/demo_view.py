"""What the demo has seen, and how it shows it: on a terminal, in a pipe, as JSON lines.

A :class:`Tally` counts, a :class:`View` draws; :func:`view_for` picks the view.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from worker.batch import STAGES

Frame = NDArray[np.uint8]

CARD_WIDTH = 20
CARD_HEIGHT = 5
"""One digit on the screen: four lines of picture and one of space."""

INK = 110
"""Grey value above which a pixel counts as written on."""

LEGEND = "scanned digits through Kafka: read as, score, latency"


@dataclass(frozen=True, slots=True)
class Answer:
    """One prediction beside the picture it was made of."""

    frame: Frame
    """(8, 8) grey values, 0..255."""
    label: str | None
    score: float | None
    true_label: str
    total_ms: float

    @property
    def right(self) -> bool:
        return self.label == self.true_label


@dataclass(slots=True)
class Tally:
    """Everything the summary says, gathered from the results and the metrics topic.

    At least once may answer a record twice; an id counts once.
    """

    ids: set[str] = field(default_factory=set)
    wrong: list[Answer] = field(default_factory=list)
    latencies_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    by_replica: Counter[str] = field(default_factory=Counter)
    first_s: float | None = None
    last_s: float = 0.0

    @property
    def records(self) -> int:
        return len(self.ids)

    @property
    def accuracy(self) -> float | None:
        return 1 - len(self.wrong) / self.records if self.records else None

    @property
    def per_second(self) -> float:
        elapsed = self.last_s - self.first_s if self.first_s is not None else 0.0
        return (self.records - 1) / elapsed if elapsed > 0 else 0.0

    def add(self, result: dict[str, Any], frame: Frame, true_label: str) -> Answer | None:
        """Count one result record; None when its id was counted before."""
        if result["id"] in self.ids:
            return None
        self.ids.add(result["id"])
        self.last_s = time.monotonic()
        self.first_s = self.first_s or self.last_s
        for stage, milliseconds in result["latency_ms"].items():
            self.latencies_ms[stage].append(milliseconds)
        prediction = result["prediction"]
        answer = Answer(
            frame, prediction["label"], prediction["score"], true_label, result["latency_ms"]["total"]
        )
        if not answer.right:
            self.wrong.append(answer)
        return answer

    def add_metrics(self, client_id: str, record: dict[str, Any]) -> None:
        """Count one record of the metrics topic: its counters cover one interval of one replica."""
        self.by_replica[client_id] += sum(p["records"]["out"] for p in record["pipelines"].values())

    def percentile_ms(self, stage: str, percent: float) -> float:
        return float(np.percentile(self.latencies_ms[stage], percent)) if self.latencies_ms[stage] else 0.0

    def summary(self) -> dict[str, Any]:
        """The last line of ``demo --json``."""
        answered = sum(self.by_replica.values())
        return {
            "type": "summary",
            "records": self.records,
            "accuracy": self.accuracy,
            "latency_ms": {
                stage: {
                    "p50": round(self.percentile_ms(stage, 50), 3),
                    "p99": round(self.percentile_ms(stage, 99), 3),
                }
                for stage in (*STAGES, "total")
            },
            "replicas": [
                {"id": name, "records": count, "share": round(count / answered, 4) if answered else 0.0}
                for name, count in sorted(self.by_replica.items())
            ],
        }


class View(Protocol):
    """Shows the demo to the user; used as ``with view:``."""

    def __enter__(self) -> View: ...

    def __exit__(self, *exception: object) -> None: ...

    def starting(self, message: str) -> None:
        """Say what the demo waits for before the first prediction."""

    def answered(self, result: dict[str, Any], answer: Answer) -> None:
        """Show one prediction."""

    def tick(self, tally: Tally) -> None:
        """Bring the live line up to date; called every few milliseconds."""

    def summary(self, tally: Tally) -> None:
        """The end; called after the ``with`` block, so the live part is gone."""


def view_for(json: bool) -> View:
    """JSON lines when asked for, a live grid on a terminal, rows of text otherwise."""
    if json:
        return JsonView()
    console = Console(highlight=False)
    return GridView(console) if console.is_terminal and not console.is_dumb_terminal else RowsView(console)


class JsonView:
    """One JSON object per line and nothing else."""

    def __enter__(self) -> JsonView:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def starting(self, message: str) -> None:
        pass

    def answered(self, result: dict[str, Any], answer: Answer) -> None:
        self._line({"type": "prediction", **result})

    def tick(self, tally: Tally) -> None:
        pass

    def summary(self, tally: Tally) -> None:
        self._line(tally.summary())

    def _line(self, value: dict[str, Any]) -> None:
        sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.buffer.flush()


class RowsView:
    """For a pipe or a file: digits side by side as they come, a line of numbers once a second."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.row: list[Answer] = []
        self.next_line_s = 0.0

    def __enter__(self) -> RowsView:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()

    def starting(self, message: str) -> None:
        self.console.print(f"{message}\n{LEGEND}\n")

    def answered(self, result: dict[str, Any], answer: Answer) -> None:
        self.row.append(answer)
        if len(self.row) == cards_across(self.console):
            self._flush()

    def tick(self, tally: Tally) -> None:
        now = time.monotonic()
        if tally.records and now >= self.next_line_s:
            if self.next_line_s:
                self._flush()
                self.console.print(live_line(tally))
                self.console.print()
            self.next_line_s = now + 1

    def summary(self, tally: Tally) -> None:
        self.console.print(summary_text(tally, self.console))

    def _flush(self) -> None:
        if self.row:
            self.console.print(card_row(self.row, gray=False))
            self.row = []
        # A reader at the other end of a pipe sees each row when it is made, not 8 KiB later.
        self.console.file.flush()


class GridView:
    """For a terminal: a grid in which each new digit takes the place of the oldest, and a live line below."""

    FRAMES_PER_SECOND = 15

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.cards: list[Answer] = []
        self.shown = 0
        self.next_draw_s = 0.0

    def __enter__(self) -> GridView:
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def starting(self, message: str) -> None:
        self.live.update(Text(message, style="dim"), refresh=True)

    def answered(self, result: dict[str, Any], answer: Answer) -> None:
        # Leave room for the title, the live line and the cursor's own line.
        room = cards_across(self.console) * max((self.console.height - 4) // CARD_HEIGHT, 1)
        del self.cards[room:]
        if len(self.cards) < room:
            self.cards.append(answer)
        else:
            self.cards[self.shown % room] = answer
        self.shown += 1

    def tick(self, tally: Tally) -> None:
        now = time.monotonic()
        if tally.records and now >= self.next_draw_s:
            self.next_draw_s = now + 1 / self.FRAMES_PER_SECOND
            across = cards_across(self.console)
            rows = [self.cards[i : i + across] for i in range(0, len(self.cards), across)]
            gray = self.console.color_system is not None and not self.console.no_color
            title = Text(f"{LEGEND}   (Ctrl-C ends)", style="dim", no_wrap=True)
            grid = Group(title, *(card_row(row, gray) for row in rows), live_line(tally))
            self.live.update(grid, refresh=True)

    def summary(self, tally: Tally) -> None:
        self.console.print(summary_text(tally, self.console))


def cards_across(console: Console) -> int:
    return max(console.width // CARD_WIDTH, 1)


def card_row(answers: Sequence[Answer], gray: bool) -> Text:
    """Digits side by side, ``CARD_HEIGHT`` lines; ``gray``: true grey values, else black and white blocks."""
    cards = [(picture(answer.frame, gray), caption(answer)) for answer in answers]
    lines = []
    for i in range(CARD_HEIGHT - 1):
        line = Text(no_wrap=True)
        for pixels, words in cards:
            start = len(line)
            line.append_text(pixels[i]).append("  ").append_text(words[i])
            line.pad_right(start + CARD_WIDTH - 1 - len(line))
        line.rstrip()
        lines.append(line)
    return Text("\n").join([*lines, Text()])


def picture(frame: Frame, gray: bool) -> list[Text]:
    """An 8x8 frame as four lines of eight characters: two pixels above each other make one character."""
    lines = []
    for upper, lower in zip(frame[::2].tolist(), frame[1::2].tolist(), strict=True):
        line = Text()
        for top, bottom in zip(upper, lower, strict=True):
            # The block says which half is bright even where colours are lost (a copied screen).
            block = " ▄▀█"[2 * (top > INK) + (bottom > INK)]
            line.append(block, style=gray_style(block, top, bottom) if gray else "")
        lines.append(line)
    return lines


def gray_style(block: str, top: int, bottom: int) -> str:
    """Colours that make ``block`` show two grey values; a full or empty one can only show their mean."""
    mean = (top + bottom) // 2
    front, back = {"▀": (top, bottom), "▄": (bottom, top)}.get(block, (mean, mean))
    return f"rgb({front},{front},{front}) on rgb({back},{back},{back})"


def caption(answer: Answer) -> list[Text]:
    """Four short lines beside the picture: label, score, latency, and what it really was if misread."""
    label = answer.label if answer.label is not None else "?"
    return [
        Text(label, style="bold green" if answer.right else "bold red"),
        Text(f"{answer.score:.1%}" if answer.score is not None else "-"),
        Text(f"{answer.total_ms:.1f} ms", style="dim"),
        Text("" if answer.right else f"is a {answer.true_label}", style="red"),
    ]


def live_line(tally: Tally) -> Text:
    accuracy = f"{tally.accuracy:.1%}" if tally.accuracy is not None else "-"
    return Text.assemble(
        (f"{tally.records:,} records", "bold"),
        f"   {tally.per_second:.0f}/s",
        f"   p50 {tally.percentile_ms('total', 50):.1f} ms",
        f"   p99 {tally.percentile_ms('total', 99):.1f} ms",
        f"   accuracy {accuracy}",
        no_wrap=True,
    )


def summary_text(tally: Tally, console: Console) -> Text:
    """The summary for people: counts, accuracy, latency by stage, replicas, and some misread digits."""
    if not tally.records:
        return Text("no record was answered")
    right = tally.records - len(tally.wrong)
    lines = [
        Text(f"{tally.records:,} records at {tally.per_second:.0f}/s", style="bold"),
        Text(f"accuracy {tally.accuracy:.1%}: {right:,} of {tally.records:,} true labels", style="bold"),
        Text(),
        *latency_table(tally),
        Text(),
        *replica_table(tally),
    ]
    if tally.wrong:
        gray = console.color_system is not None and not console.no_color
        lines += [Text(), Text("misread, for example:"), card_row(tally.wrong[: cards_across(console)], gray)]
        lines[-1].rstrip()
    return Text("\n").join(lines)


def latency_table(tally: Tally) -> list[Text]:
    lines = [Text(f"{'latency':<12}{'p50 ms':>9}{'p99 ms':>9}", style="dim")]
    whole = tally.percentile_ms("total", 50) or 1.0
    for stage in (*STAGES, "total"):
        p50, p99 = tally.percentile_ms(stage, 50), tally.percentile_ms(stage, 99)
        bar = "" if stage == "total" else "█" * round(30 * min(p50 / whole, 1))
        style = "bold" if stage == "total" else ""
        lines.append(
            Text.assemble((f"{stage:<12}{p50:>9.2f}{p99:>9.2f}", style), (bar and f"  {bar}", "cyan"))
        )
    return lines


def replica_table(tally: Tally) -> list[Text]:
    replicas = tally.summary()["replicas"]
    width = max([len(replica["id"]) for replica in replicas] + [12])
    lines = [Text(f"{'replica':<{width}}{'records':>9}{'share':>9}", style="dim")]
    lines += [Text(f"{r['id']:<{width}}{r['records']:>9,}{r['share']:>9.1%}") for r in replicas]
    return lines
