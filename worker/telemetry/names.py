"""Every metric of the worker with its type and explanation; the reference page is generated from this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worker.batch import STAGES

PREFIX = "streaminfer_"

METRIC_STAGES = (*STAGES, "total", "hold", "publish")
"""Latency is measured for the stages of a result, for their sum, and for the two stages after it is finished."""

LOOP_SECTIONS = ("poll", "submit", "publish", "commit", "wait")
"""The activities on which the conductor's thread spends its time."""


VERSIONS_KEPT = 8
"""Model versions of a pipeline that have series of their own; what older ones did is counted under an empty version."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as Prometheus shows it; ``name`` lacks the common prefix."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()


RECORDS_IN = Metric("records_in_total", "counter", "records", "Records taken from Kafka.", ("pipeline",))
RECORDS = Metric(
    "records_total",
    "counter",
    "records",
    "Records that have an outcome: ok (result acknowledged), dead_letter, or dropped (no output: configured, or given back to Kafka by a revoke or rewind). `version` is empty where no model version stands for them.",
    ("pipeline", "outcome", "version"),
)
SKIPPED = Metric(
    "skipped_total",
    "counter",
    "records",
    "Records that input.keep left out because newer ones came; they are dropped ones of records_total, too.",
    ("pipeline",),
)
RECORDS_IN_FLIGHT = Metric(
    "records_in_flight",
    "gauge",
    "records",
    "Records taken that have no outcome yet; records_in_total is always this plus records_total.",
    ("pipeline",),
)
ERRORS = Metric(
    "errors_total",
    "counter",
    "records",
    "Records that failed, by reason, by the stage that refused them and by the model version that their dead letter names.",
    ("pipeline", "reason", "stage", "version"),
)
ITEMS = Metric("items_total", "counter", "items", "Items the model answered.", ("pipeline", "version"))
BATCHES = Metric(
    "batches_total", "counter", "batches", "Batches the model answered.", ("pipeline", "version")
)
BATCH_SIZE = Metric("batch_size", "histogram", "items", "Items per batch.", ("pipeline",))
TRUNCATED = Metric(
    "truncated_total",
    "counter",
    "records",
    "Records whose text was longer than preprocess.text.max_length, so that a part of it was left out.",
    ("pipeline",),
)
CACHE = Metric(
    "cache_total",
    "counter",
    "records",
    "Records whose answer was looked for in the pipeline's cache: hit (answered from memory, or with an equal one of the same batch) or miss.",
    ("pipeline", "result"),
)
RUN_ITEMS = Metric(
    "run_items_limit",
    "gauge",
    "items",
    "Most items in one model run now; below batching.max_size after the model was out of memory. Known from the first batch on.",
    ("pipeline",),
)
STAGE_DURATION = Metric(
    "stage_duration_seconds",
    "histogram",
    "seconds",
    "Time per record in each stage, their total, and what follows: hold (finished to released) and publish (released to acknowledged). The stage infer has the model version in `version`, the others leave it empty.",
    ("pipeline", "stage", "version"),
)
STEP_ITEMS = Metric(
    "step_items_total",
    "counter",
    "items",
    "Items that a step's model answered, where several models answer a record.",
    ("pipeline", "step"),
)
STEP_RUNS = Metric(
    "step_batches_total",
    "counter",
    "batches",
    "Batches that a step's model answered.",
    ("pipeline", "step"),
)
STEP_DURATION = Metric(
    "step_duration_seconds",
    "histogram",
    "seconds",
    "Time per record that its batch spent in a step; all steps together are the stage infer.",
    ("pipeline", "step"),
)
IN_FLIGHT_BYTES = Metric(
    "in_flight_bytes",
    "gauge",
    "bytes",
    "Payloads, tensors and decode scratch held, of limits.in_flight_bytes.",
)
CONSUMER_LAG = Metric(
    "consumer_lag_records",
    "gauge",
    "records",
    "Records of an assigned partition that are not committed yet.",
    ("topic", "partition"),
)
LAG_AGE = Metric(
    "consumer_lag_age_seconds",
    "gauge",
    "seconds",
    "Age of the partition's end that its lag is counted to; it grows only while the broker does not answer.",
    ("topic", "partition"),
)
SECONDS_TO_DRAIN = Metric(
    "seconds_to_drain",
    "gauge",
    "seconds",
    "Lag of an assigned partition divided by the records a second of the last minute; +Inf where records wait and none was answered for a minute.",
    ("topic", "partition"),
)
REBALANCES = Metric("rebalances_total", "counter", "rebalances", "Changes of this process's partitions.")
TRANSACTIONS = Metric(
    "transactions_total", "counter", "transactions", "Kafka transactions by result.", ("result",)
)
REWINDS = Metric(
    "rewinds_total",
    "counter",
    "rewinds",
    "Returns to the committed position by cause; out_of_range: to the earliest record, the position was not on the broker.",
    ("cause",),
)
MODEL_INFO = Metric(
    "model_info", "gauge", "", "Always 1: the model in use.", ("pipeline", "name", "version", "provider")
)
MODEL_SWAPS = Metric(
    "model_swaps_total",
    "counter",
    "swaps",
    "How often another version of its model took over.",
    ("pipeline",),
)
MODEL_REFUSED = Metric(
    "model_refused_total",
    "counter",
    "versions",
    "Versions of its model that were not taken over: checksum, unsigned, unloadable, signature, golden, memory.",
    ("pipeline", "reason"),
)
ROLLOUTS = Metric(
    "rollouts_total",
    "counter",
    "rollouts",
    "Rollouts of new versions on this replica: running when one began, then promoted, rolled_back or aborted.",
    ("pipeline", "state"),
)
ROLLOUT_SHARE = Metric(
    "rollout_share",
    "gauge",
    "",
    "Share of the keys that a candidate answers now; 0 while no canary runs.",
    ("pipeline",),
)
CONFIG_INFO = Metric(
    "config_info",
    "gauge",
    "",
    "Always 1: the configuration file that was taken over last, by the first 8 hex digits of its SHA-256.",
    ("digest",),
)
CONFIG_RELOADS = Metric(
    "config_reloads_total",
    "counter",
    "reloads",
    "How often the configuration was read again while the worker ran: changed, unchanged, or refused because of a mistake in it.",
    ("result",),
)
CONFIG_NEEDS_RESTART = Metric(
    "config_needs_restart",
    "gauge",
    "settings",
    "Settings that the file has otherwise than this worker, because they need a restart.",
)
DRIFT = Metric(
    "drift_psi",
    "gauge",
    "",
    "Population stability index of a figure of records or answers, between the profile and the last drift.window_s, without what chance adds: above 0.2 it has shifted. Present once 100 records were measured.",
    ("pipeline", "feature"),
)
DRIFT_MEASURED = Metric(
    "drift_measured_total",
    "counter",
    "records",
    "Records that were measured to be compared with the profile of their pipeline.",
    ("pipeline",),
)
ASSIGNED_PARTITIONS = Metric(
    "assigned_partitions",
    "gauge",
    "partitions",
    "Partitions assigned to this process. Lag series exist for these only: alert on the sum over the group, too.",
)
BROKER_AVAILABLE = Metric(
    "broker_available",
    "gauge",
    "",
    "1 while the consumer is connected to any broker and each cluster of `output.kafka` answers, else 0.",
)
OUTSIDE_AVAILABLE = Metric(
    "outside_available",
    "gauge",
    "",
    "0 while a store or a schema registry that records wait for does not answer, else 1.",
)
KAFKA_THROTTLED = Metric(
    "kafka_throttled_seconds_total",
    "counter",
    "seconds",
    "Time for which brokers held back answers to the consumer, because a quota was used up.",
)
KAFKA_ERRORS = Metric(
    "kafka_errors_total",
    "counter",
    "errors",
    "Errors the Kafka clients reported, by librdkafka's name of the code.",
    ("code",),
)
SPANS = Metric(
    "spans_total",
    "counter",
    "spans",
    "Spans of traced records: sent (the collector took them), failed (it did not), dropped_rate (over tracing.max_per_s), dropped_full (too many waited).",
    ("outcome",),
)
LOG_LINES_DROPPED = Metric(
    "log_lines_dropped_total",
    "counter",
    "lines",
    "Log lines that were lost because standard error could not take them: nobody reads the pipe, or the disk is full.",
)

METRICS = (
    RECORDS_IN,
    RECORDS,
    SKIPPED,
    RECORDS_IN_FLIGHT,
    ERRORS,
    ITEMS,
    BATCHES,
    BATCH_SIZE,
    RUN_ITEMS,
    TRUNCATED,
    CACHE,
    STAGE_DURATION,
    STEP_ITEMS,
    STEP_RUNS,
    STEP_DURATION,
    IN_FLIGHT_BYTES,
    CONSUMER_LAG,
    LAG_AGE,
    SECONDS_TO_DRAIN,
    REBALANCES,
    TRANSACTIONS,
    REWINDS,
    MODEL_INFO,
    MODEL_SWAPS,
    MODEL_REFUSED,
    ROLLOUTS,
    ROLLOUT_SHARE,
    CONFIG_INFO,
    CONFIG_RELOADS,
    CONFIG_NEEDS_RESTART,
    DRIFT,
    DRIFT_MEASURED,
    ASSIGNED_PARTITIONS,
    BROKER_AVAILABLE,
    OUTSIDE_AVAILABLE,
    KAFKA_THROTTLED,
    KAFKA_ERRORS,
    SPANS,
    LOG_LINES_DROPPED,
)
