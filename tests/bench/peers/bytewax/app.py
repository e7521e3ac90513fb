"""The JSON job in Bytewax, batched by hand: its Kafka source gives batches, one model run takes each of them."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
import numpy as np
import onnxruntime as ort
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.testing import cluster_main

job = json.loads(Path(sys.argv[1]).read_text())
session = ort.InferenceSession(job["model"], providers=["CPUExecutionProvider"])


def predict(messages):
    """A batch of source messages -> as many sink messages."""
    x = np.array([orjson.loads(message.value)["features"] for message in messages], np.float32)
    scores = session.run(None, {"x": x})[0]
    best = np.argsort(-scores, axis=1)[:, :3]
    values = np.take_along_axis(scores, best, axis=1)
    for message, classes, row in zip(messages, best.tolist(), values.tolist(), strict=True):
        top = [{"label": str(c), "score": score} for c, score in zip(classes, row, strict=True)]
        source = {"topic": message.topic, "partition": message.partition, "offset": message.offset}
        body = orjson.dumps({"source": source, "prediction": {**top[0], "top": top}})
        yield KafkaSinkMessage(message.key, body)


flow = Dataflow("bench")
brokers = [job["bootstrap"]]
source = KafkaSource(brokers, [job["input"]], tail=True, batch_size=1000)
records = op.input("in", flow, source)
results = op.flat_map_batch("predict", records, predict)
op.output("out", results, KafkaSink(brokers, job["output"]))
cluster_main(flow, [], 0, epoch_interval=timedelta(seconds=10))
