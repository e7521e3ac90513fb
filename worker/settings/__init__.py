"""What a user may set: declared once, checked before anything starts, emitted as a JSON Schema.

:func:`load` reads a file, :func:`validate` checks a document; both give a frozen :class:`Settings` in which the keys
of a single pipeline at the top of the file have become the one entry of ``pipelines``. What can be known without
the model is checked here; what needs the model's signature asks back through :func:`check_budget`.
"""

from worker.settings.checks import (
    check_budget,
    check_replicas,
    starved_pipelines,
)
from worker.settings.document import load, located, places_of, validate
from worker.settings.hosts import plaintext_hosts, security_protocol
from worker.settings.kinds import MIB
from worker.settings.label_checks import scored_pipelines
from worker.settings.memory import memory_bound, memory_parts
from worker.settings.model_checks import check_model_file
from worker.settings.printed import printed
from worker.settings.references import import_attribute, labels_of
from worker.settings.schema import json_schema
from worker.settings.sections import (
    CreateSettings,
    LimitsSettings,
    PipelineSettings,
    Settings,
    is_secret,
)

__all__ = [
    "MIB",
    "CreateSettings",
    "LimitsSettings",
    "PipelineSettings",
    "Settings",
    "check_budget",
    "check_model_file",
    "check_replicas",
    "import_attribute",
    "is_secret",
    "json_schema",
    "labels_of",
    "load",
    "located",
    "memory_bound",
    "memory_parts",
    "places_of",
    "plaintext_hosts",
    "printed",
    "scored_pipelines",
    "security_protocol",
    "starved_pipelines",
    "validate",
]
