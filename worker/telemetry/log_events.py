"""Every event of the log: its level, its fields, what it means, and where the documentation says what to do about it.

The reference page is made from this table, a test holds it to the code, and each warning carries the last column as its
field ``help``: a page and a heading below ``docs/``. A new event is a new line here.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

PAGE = "operations/runbooks.md"


class Told(NamedTuple):
    """One event."""

    event: str
    levels: str
    fields: str
    meaning: str
    help: str
    """``page.md#heading`` below ``docs/``; empty where there is nothing to do."""


_TABLE = """
== A worker from start to end
started | info | reads, brokers, group, writes, dead_letters, metrics, config, digest, client_id, pipelines, delivery, batch_path, producer, in_flight_bytes, version, python, onnxruntime, kafka_client | The worker is warm and joins its group. |
serving metrics and health | info | host, port | `metrics.http` answers from now on. |
working | info | in_per_s, out_per_s, p50_ms, p99_ms, dead, lag, rss_bytes, waits | Once a minute: records a second in and out, latency from the record's timestamp to its result, dead letters, lag of this process's partitions, memory. `waits` says what records wait for, if that is unusual. |
drain | info | in_flight, budget_s | The worker was asked to end: it takes nothing more and finishes these records. |
drained | info | | Everything is finished and committed, and the group is left. |
counted | info | client_id, taken, ok, dead_letter, dropped, in_flight, commits_failed | Last words: what became of every record of this process, and how many positions could not be committed at the first try. |
fatal | critical | exit_code, reason, mistakes | Why the process ends. On a terminal it is the last sentence. | #the-process-ended
stuck | error | reason, state, stacks | The watchdog ends the process: its state, and the calls of each thread. | #the-process-ended
bug | error | exception | An error that nobody foresaw, with its traceback. | #the-process-ended
the system gave no more | error | exception | Memory, threads, files or room on a disk ran out during the run; `fatal` says which. | #the-process-ended
a thread died | error | thread, exception | A bug ended one thread. | #the-process-ended
an exception was ignored | error | where, exception | Python could not raise an exception, as in the destructor of an object. | #the-process-ended
configuration changed | info | digest, changed, models | The configuration was read again: these settings changed and are in force now. |
configuration read again, nothing changed | info | digest | It is the same as before. |
configuration needs a restart for some changes | warning | settings | These settings changed in the file and stay as they were until the next start. | operations/upgrades.md
configuration refused, the old one goes on | error | why | The file has a mistake, so nothing of it is taken over. | operations/upgrades.md
keys read again | info | keys, use | The keys of encrypted payloads were read again. |
printed | info | text | Custom code or a library printed this line to standard error. |
library | debug, info, warning, error, critical | text | A line of a library, which `module` names. Of `librdkafka` the lines about broken connections count as debug. |
log lines were dropped | warning | lines | Standard error could not take so many lines. | operations/monitoring.md#the-log

== Replicas
replica started | info | replica, pid | The supervisor has started a process. |
replica done | debug | replica | A replica drained and ended with 0. |
replica recycled itself | info | replica | It drained to give memory back; the next one starts at once. |
replica died | error | replica, ended, restart_in_s | A replica ended unasked, and is started again. | #a-replica-died
replica ended for good | error | replica, ended | Its exit code would come again: the others drain. | #a-replica-died
replica failed while draining | error | replica, ended | It did not drain in order. | #a-replica-died
too many deaths, giving up | error | replica, ended | Five deaths within a minute: all drain. | #a-replica-died
cannot start a replica | error | replica, error | The system starts no process now. | #a-replica-died
draining the replicas | info | why | All replicas drain. |
left the group for the process that died | info | member | A replica has taken its predecessor out of the group, so that its partitions move at once. |
cannot leave for the process that died | debug | why | The predecessor stays in the group until its session times out. |

== Records
dead letters | warning | pipeline, (reason), first, message | So many records became dead letters since the last such line, by [reason](dead-letters.md); `first` is the place of the first one, `message` what it says. At most one line for a pipeline in 10 s, ever more rarely while it goes on. | #dead-letters
dead letters ended | info | pipeline, records, for_s | No dead letter for a minute, after several lines. |
custom code failed | warning | pipeline, stage, error, calls, record, so_far | Custom code raised an exception: `calls` are its own files and lines. Said for each line of code once, then at 10, 100, 1000 times. | #custom-code-failed
records wait to be tried again | warning | pipeline, records, first, after_s | Custom code raised `Retry`. | guides/custom-code.md#a-fault-that-will-pass
batch past its time | warning | pipeline, records | A batch is past `limits.batch_timeout_s`: its run is stopped. | #the-process-ended
read_cautiously | warning | partitions, notes | Earlier owners of these partitions died: records are worked on one at a time until the guilty one is found. | #a-replica-died
a parameter of requests has no effect in this worker | warning | parameter | A request of the Open Inference Protocol asks for something that is not there. | guides/oip.md
slab taken | debug | pipeline, records, value_bytes | So many records were taken from Kafka together. |
model run | debug | pipeline, records, refused, (stage)_us | One run of the model, with the microseconds of each stage. |
slab acknowledged | debug | pipeline, ok, dead_letter, dropped | Their outputs are acknowledged. |

== Speed
falling behind | warning | lag, in_per_s, out_per_s, drains | More records come than are answered, and the newest waits longer than 5 s. | #falling-behind
still behind | warning | lag, in_per_s, out_per_s, drains, for_s | It goes on. | #falling-behind
caught up | info | after_s, lag, in_per_s, out_per_s | It is over. |
model slow | warning | pipeline, p50_ms, was_ms, for_s | Half of the model runs take longer than `p50_ms`, five times as long as in this process before. | #slow
records differ from the profile | warning | pipeline, psi, features | Drift: what comes is no longer like the profile. | guides/drift.md
some records cannot be measured | warning | pipeline, why | Drift leaves them out; their answers are not touched. | guides/drift.md
records are like the profile again | info | pipeline, features, drifted | It is over. |
model at speed again | info | pipeline, after_s, p50_ms, was_ms | It is over. |
decode slow | warning | pipeline, p50_ms, was_ms, for_s | The same of decoding. | #slow
decode at speed again | info | pipeline, after_s, p50_ms, was_ms | It is over. |
postprocess slow | warning | pipeline, p50_ms, was_ms, for_s | The same of the postprocess and the result's bytes (stage `encode`). | #slow
postprocess at speed again | info | pipeline, after_s, p50_ms, was_ms | It is over. |

== Kafka
broker lost | warning | brokers, error | No broker is connected any more: of `kafka.bootstrap.servers`, or of the `output.kafka` that is named. | #broker-lost
the broker slows this client down: a quota is used up | warning | held_back_ms | It held back answers to the consumer for so long in the last second. Told once a minute. | guides/clusters.md#quotas
still without broker | warning | for_s | After 30 s, then once a minute. | #broker-lost
broker back | info | after_s | A broker is connected again. |
kafka errors | warning | errors, last | Errors of the clients while a broker is connected, by librdkafka's name of the code. | #kafka-errors
client error | debug | client, code, error | Each error of a client. |
assigned | info | partitions, owned | The group gave these partitions to this process; it owns so many now. |
revoked | info | partitions, finished, took_ms | They were handed over in order (`finished`), or not in time. |
lost | warning | partitions | The group gave them to others before they could be handed over. | #partitions-lost
rebalance | debug | | The group deals its partitions out again. |
commit failed | debug, warning | partitions, error | The broker refused a commit; debug while partitions change hands. The next commit makes up for it. | #kafka-errors
rewind | warning | cause, error, in_a_row | Outputs were given up; reading goes on from the last commit. | #rewind
given_back | warning | error | A drain could not finish; the records are read again by the next owner. | #rewind
committed offsets are not known yet | warning | error | The broker does not answer; it is asked again. | #kafka-errors
the first offset is not known yet | warning | partition, error | The same for the beginning of a partition. | #kafka-errors
the end of a partition is not known | debug | partition, error | The same for its end. |
the position is no longer on the broker: reading goes on from the earliest | warning | partition, position, earliest, end | Records were deleted before they were read. | #records-deleted
the log ends before the position: reading goes on earlier | warning | partition, offset | The broker lost records that were read. | #records-deleted
the consumer did not leave the group in time | warning | after_s | The group notices by its session time-out. | #kafka-errors
fetching a record ends a process | warning | partition, offset | The client cannot read this record: it becomes a dead letter. | #a-replica-died
careful reading is not possible | warning | partition, why | The partition is read as usual. | #a-replica-died
an abort failed: the producer is replaced | warning | error | A transaction could not be aborted. | #rewind
the new producer failed too | warning | error | It is tried again. | #rewind
metrics records were lost | warning | records, error | The metrics topic took these fewer since the last such line; at most one line in 10 s. | #kafka-errors
metrics records could not be sent in time | warning | records | The same at the end of the process. | #kafka-errors
limits of topics cannot be read: Kafka's defaults are assumed | warning | max_message_bytes, topics | The right DESCRIBE_CONFIGS is missing, or the broker is old. | guides/security.md#rights
the share group is set | info | share_group, settings | The group of `delivery: queue` has the settings that the worker needs. |
the settings of the share group cannot be read: those of the broker hold | warning | share_group, error, set_by | If they were never set, the group begins at the end of the topics and reads aborted transactions; `set_by` says how to set them. | explanation/queues.md
records that were not begun are given back to the group | info | records | Others are lent them. |
the lock of a record has ended | debug | record, verdict, error | The group lends the record out again. |
the broker does not take the answer for records | warning | records, error | The group lends them out again. | explanation/queues.md
no topic matches yet: those that are made later are read | warning | setting, pattern | A pattern of `input.topics` has no topic now. | guides/clusters.md#topics-by-pattern
the topic is compacted: it takes records with a key only | warning | topic, without_key | Results without a key become dead letters. | guides/send-and-read.md
the connection to Kafka is not encrypted | warning | hosts, protocol | Others on the way can read the records. | guides/security.md
the embedded broker forgets the offsets that a transaction commits | warning | | After a restart everything is read again: `exactly_once` needs a real Kafka. | guides/delivery.md
dead letters cannot be read now | warning | error | `dlq` asks again. | #kafka-errors
the control topic cannot be read | warning | topic, error | Decisions about versions do not arrive. | guides/rollout.md
the control topic cannot be read to its end: new partitions are read with what is known | warning | | The same. | guides/rollout.md
the control topic cannot be written | warning | topic, error | A decision could not be written; it is tried again. | guides/rollout.md

== Stores, registries, collectors and windows
away | warning | place, error, first | A store or registry does not answer: records that need it wait. | #a-store-or-registry-is-away
back | info | place, away_s | It answers again. |
the schema registry does not answer | warning | schema, error | Records with this schema wait. | #a-store-or-registry-is-away
the schema registry answers again | info | | It is over. |
windows_rebuilt | info | partition, read_again, incomplete | The samples of unfinished windows were read again. |
windows_wait | warning | error | They cannot be read yet. | #kafka-errors
spans are not sent, records go on | warning | collector, why | The collector of traces is away, busy or refuses spans; these are tried again for a few seconds, then given up. | #spans-are-not-sent
spans are sent again | info | collector | The collector of traces takes spans. |

== Models
model ready | info | pipeline, model, provider, batchable, max_size, threads, slab_records, (figures) | A model is loaded and warm. |
steps ready | info | pipeline, steps, slab_records, reserve_bytes | All steps of a pipeline are. |
model version loaded | info | pipeline, model, seconds | A new version is loaded beside the old one. |
another model version answers | info | pipeline, model, before | It answers from now on. |
the same model version answers with changed settings | info | pipeline, model | A changed configuration counts from now on. |
model version refused | error | pipeline, version, reason, message, answers | It is not taken over; the old one answers. | #a-model-version-was-refused
the model repository is away, the version that answers goes on | warning | pipeline, reason | New versions are not seen. | guides/models.md
the model repository is back | info | pipeline | It is over. |
the model repository has no version to follow | warning | pipeline, reason | The same. | guides/models.md
the files of the version that answers have changed: they count at the next start; expected a new version instead | warning | pipeline, version | A version must not change. | guides/models.md
the memory of old versions was not given back: draining | warning | reason | A fresh process goes on. | guides/models.md#memory
rollout begins | info | pipeline, id, stable, candidate, mode, share, state, reason, by | A candidate is on trial here. |
rollout grows | info | pipeline, id, stable, candidate, mode, share, state, reason, by | It gets more keys. |
rollout decided | info | pipeline, id, stable, candidate, mode, share, state, reason, by | This replica has decided; `reason` says why. |
rollout ended | info | pipeline, id, stable, candidate, mode, share, state, reason, by | Promoted or rolled back. |
a shadow batch failed | error | pipeline, exception | A shadow could not answer; results are not touched. | guides/rollout.md
results of a shadow are left out | warning | topic, so_far, error | Its topic takes no more now. | guides/rollout.md
results of a shadow could not be sent in time | warning | records | The same at the end. | guides/rollout.md
model run out of memory | warning | model, items, items_per_run | Runs get fewer items. | #memory
model runs have their full size again | info | model, items_per_run | It is over. |
the model refuses large batches | warning | model, asked, used, reason | Runs are smaller than asked for. | operations/troubleshooting.md#slow
the model refuses the made-up warm-up items: records run one at a time | warning | model, reason | Whether it is batchable cannot be found out. | operations/troubleshooting.md#slow
the model answers the same item differently each time: records run one at a time, its health is not checked | warning | model | It holds randomness. | operations/troubleshooting.md#slow
the model refuses a made-up item of a shape in model.shapes | warning | model, shapes, reason | That shape is not warmed up. | guides/models.md
padding changes the model's answers: only records of the same length share a run | warning | model, reason | Runs are smaller. | guides/text.md
the custom code refuses made-up items | warning | model, reason | Custom model code cannot be warmed up. | guides/custom-code.md
custom code failed to close its model | warning | reason | Its `close()` raised. | guides/custom-code.md
the runtime found no CUDA libraries beside it | warning | reason | The GPU may not be used. | guides/gpu.md
TensorRT builds its engines, which can take minutes | info | model, kept | The first start on a new GPU takes long. |

== Live accuracy (`streaminfer score`)
a pipeline is not scored | warning | pipeline, because | Its results cannot be compared with labels. | guides/accuracy.md
metrics.topic is not set: after a restart the figures begin anew, though no result is counted twice | warning | | The sums are kept nowhere else. | guides/accuracy.md
the last quality record is not there any more: figures begin anew | warning | partition, place | The metrics topic has deleted it. | guides/accuracy.md
the partitions leave without a last commit | warning | because | Their next owner reads on from the commit before. | guides/accuracy.md
a record is not scored | warning | record, why | A result or a label cannot be read. | guides/accuracy.md
the last quality record cannot be read | warning | record, error | Its sums begin anew. | guides/accuracy.md
quality records are not published: the partitions begin anew | warning | error | Nothing is counted twice: reading goes on from the last commit. | guides/accuracy.md
metrics.http is in use, so the metrics of score are on another port; labels.http gives them one of their own | warning | in_use, port | A worker of the same configuration has the port. | guides/accuracy.md

== HTTP
certificate read again | info | certificate | `metrics.tls` has a new certificate. |
the new certificate is not used, the old one stays | warning | why | Its files cannot be used. | guides/see.md
metrics.token is sent unencrypted to other hosts; metrics.tls encrypts it | warning | host | Others on the way can read the token. | guides/see.md
an HTTP answer failed | error | path, exception | A bug in one answer. | #the-process-ended
a second of the page failed | error | exception | A bug in what the page shows. | #the-process-ended
a result is not shown | error | exception | The same of one sample. | #the-process-ended
a metrics connection broke | debug | reason | A client went away. |
no picture of a sample | debug | reason | The sample is shown without one. |
"""


@cache
def chapters() -> dict[str, list[Told]]:
    """The events by subject, in the order of the table."""
    found: dict[str, list[Told]] = {}
    for line in filter(None, _TABLE.splitlines()):
        if line.startswith("== "):
            found[line.removeprefix("== ")] = []
            continue
        cells = [cell.strip() for cell in f"{line} |||".split("|")[:5]]
        if cells[4].startswith("#"):
            cells[4] = PAGE + cells[4]
        found[next(reversed(found))].append(Told(*cells))
    return found


@cache
def events() -> dict[str, Told]:
    """Every event by its text."""
    return {told.event: told for chapter in chapters().values() for told in chapter}


def help_for(event: str) -> str | None:
    """Where the documentation says what to do about an event; None where nothing is to be done."""
    told = events().get(event)
    return told.help or None if told is not None else None
