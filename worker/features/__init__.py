"""Contents: each reads one kind of field (numbers, a picture) into a model input; one module per content.

An input format opens a record; a content reads a field of it. The two are independent: any content works with any
format that can hold it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from worker.batch import Array, Feed, Padding
from worker.errors import Reject
from worker.features import base64_text
from worker.features.values import TYPE_NAMES, Missing
from worker.model.signature import Signature, TensorSpec
from worker.records.paths import ABSENT, Path
from worker.settings import LimitsSettings
from worker.settings.section import ContentSettings

if TYPE_CHECKING:
    from worker.settings import PipelineSettings

Record = Any
"""An opened record: its bytes, or a mapping of its fields."""
Opened = dict[Any, Any]
"""A cache that the features of one record share, so that a picture that fills two inputs is decoded once."""
MARKS = object()
"""Key in :data:`Opened` of what a windowed feature says about its windows: see :attr:`worker.batch.Item.marks`."""


@dataclass(frozen=True)
class Place:
    """Where in a record a content is: a field, several fields of one element each, or the record's whole value."""

    field: str | None = None
    """The field's name, or a path to it; see :class:`worker.records.paths.Path`."""
    names: tuple[str, ...] = ()
    """Names or paths of the fields of one element each."""
    missing: Missing = "reject"
    """``input.missing``: the substitute for a missing number."""
    default: Any = ABSENT
    """What counts if the field is absent or null: as it is configured, which is text; ``ABSENT`` = nothing does."""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The same for ``names``, by name."""

    @cached_property
    def path(self) -> Path | None:
        """The way to the field; None if the content is the record itself."""
        return None if self.field is None else Path.of(self.field)

    def of(self, record: Record) -> Any:
        """The field's value, or the record itself.

        Raises:
            Reject: the record does not have this field.
        """
        if self.path is None:
            return record
        found = self.path.find(record)
        if self.default is not ABSENT and (found is ABSENT or found is None):
            return self.default
        if found is ABSENT:
            raise Reject(f"{self} is missing")
        return found

    def __str__(self) -> str:
        if self.names:
            return f"the fields {', '.join(self.names)}"
        return "the record" if self.field is None else f'the field "{self.field}"'


class Feature(Protocol):
    """Fills one model input from one place of a record."""

    spec: TensorSpec
    slow: bool
    """Whether it works without the interpreter lock long enough that splitting a batch over threads pays."""

    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        """Write the item into the row's slot of ``feed.arrays``; if ``feed`` has no arrays, put it into ``items``.

        Args:
            opened: shared by the features of this record.

        Returns:
            False if the row is already in ``feed.rejected``, because a stage after ``decode`` refused it.

        Raises:
            Reject: the record does not hold what the input needs.
        """
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """A feature that reads many records in one call, before each of them is written."""

    def read_all(self, records: Mapping[int, Record]) -> Mapping[int, Any]:
        """What ``write`` finds in ``opened`` under this feature, by row; an exception for a record that is refused."""
        ...


@runtime_checkable
class HasRoom(Protocol):
    """A feature whose tensors have no known size: their memory is charged by the length of the record."""

    def room(self, nbytes: int, signature: Signature) -> int:
        """Bytes of memory that a record of ``nbytes`` bytes takes at most, besides its own and one item's of length 1."""
        ...


class FileFeature(ABC):
    """A feature that reads a file in the record: the record's bytes, or base64 text in a field."""

    slow = True
    windowed = False
    """Whether it makes several items of one record: it puts an array (windows, ...) into ``items`` and their marks under
    ``opened[MARKS]``."""
    filled: tuple[str, ...]
    """Names of the model inputs that it fills."""
    reads_whole = False
    """Whether the size of what it decodes to stands anywhere in the file, so that its beginning alone does not do."""
    further_nbytes = 0
    """Bytes of the tensors of each item beyond the first, its answers included; the decoder knows them."""
    batch_records: int | None = None
    """Most records in one batch, because one may take long; None = as many as ``batching.max_size``."""
    answer_share = 0.0
    """Bytes of the model's answer for each byte of the item, as made-up items have shown; set by the decoder."""

    def __init__(self, spec: TensorSpec, place: Place) -> None:
        self.spec = spec
        self.place = place
        self.filled = (spec.name,)

    @abstractmethod
    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        """See :class:`Feature`."""

    @abstractmethod
    def scratch(self, beginning: bytes) -> int:
        """Bytes that decoding needs besides the file and the item; 0 if they are at most 8 MiB.

        Args:
            beginning: the file, or as much of it as holds its header.

        Raises:
            Reject: the header says that the file cannot be decoded, or is not whole.
        """

    @property
    def padding(self) -> Padding | None:
        """How items of unlike length are made equally long; None = they have one shape, or share no run."""
        return None

    def items_in(self, beginning: bytes) -> int:
        """How many items the record has because of this file.

        Args:
            beginning: as for :meth:`scratch`, which did not refuse it.
        """
        return 1

    def charge(self, beginning: bytes) -> int:
        """Bytes that the file takes from the byte budget: its scratch, and the tensors of its further windows.

        Raises:
            Reject: see :meth:`scratch`.
        """
        scratch = self.scratch(beginning)
        if self.windowed:
            scratch += (self.items_in(beginning) - 1) * self.further_nbytes
        return scratch

    def file(self, record: Record) -> bytes:
        """The file in a record.

        Raises:
            Reject: the field is missing, or holds something else.
        """
        if isinstance(record, bytes):
            return record
        found = self.place.of(record)
        if isinstance(found, bytes):
            return found
        if not isinstance(found, str):
            raise Reject(
                f"{self.place}: expected base64 text, got {TYPE_NAMES.get(type(found), 'something else')}"
            )
        try:
            return base64_text.decoded(found)
        except ValueError:
            raise Reject(f"{self.place} is not base64", "undecodable") from None


class Content(Protocol):
    """An entry of ``worker.registry.CONTENTS``. Importing it must not import OpenCV or another heavy library.

    Three attributes are optional. ``takes_default = True``: the content can be made of ``Place.default``. ``placeless = True``:
    it reads nothing of a record, so that it goes with every format that holds contents, and has no ``from``. ``holds``: names of
    contents whose settings may stand beside its own, and then count as settings of its section.
    """

    settings: type[ContentSettings]

    def make(self, options: Any, spec: TensorSpec, place: Place, key: str, limits: LimitsSettings) -> Feature:
        """The feature that fills one model input.

        Args:
            options: of the class ``settings``; None if the configuration does not name the content.
            spec: the model input.
            key: the setting's name, for errors.

        Raises:
            ConfigError: the settings and the model's input cannot go together.
        """
        ...


@runtime_checkable
class WideContent(Protocol):
    """A content that may fill several model inputs from one place, as a text fills ids, mask and types."""

    settings: type[ContentSettings]

    def fills(
        self, options: Any, inputs: Sequence[TensorSpec], named: TensorSpec | None, key: str
    ) -> list[TensorSpec]:
        """The model inputs that it fills, the most important one first.

        Args:
            options: of the class ``settings``.
            inputs: all of the model's.
            named: the input under whose name it stands in ``preprocess.inputs``; None if it stands alone.
            key: the setting's name, for errors.

        Raises:
            ConfigError: the model has no input that it could fill.
        """
        ...

    def make_wide(
        self,
        options: Any,
        specs: Sequence[TensorSpec],
        places: Callable[[str], Place],
        key: str,
        settings: PipelineSettings,
        limits: LimitsSettings,
    ) -> Feature:
        """The feature that fills these model inputs; it writes an item for each.

        Args:
            specs: of :meth:`fills`.
            places: ``from`` -> where in the record that is. ``options.from_`` is where the content is.
            settings: of the pipeline, such as where its model lies.

        Raises:
            ConfigError: the settings and the model's inputs cannot go together.
        """
        ...
