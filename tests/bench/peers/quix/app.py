"""The JSON job in Quix Streams, as its documentation writes it: one record at a time, at least once."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import orjson
from quixstreams import Application

logging.disable(logging.INFO)
job = json.loads(Path(sys.argv[1]).read_text())
session = ort.InferenceSession(job["model"], providers=["CPUExecutionProvider"])


def predict(value, key, timestamp, headers):
    x = np.array([orjson.loads(value)["features"]], np.float32)
    scores = session.run(None, {"x": x})[0][0]
    top = [{"label": str(c), "score": float(scores[c])} for c in np.argsort(-scores)[:3]]
    return orjson.dumps({"timestamp_ms": timestamp, "prediction": {**top[0], "top": top}})


app = Application(
    broker_address=job["bootstrap"],
    consumer_group=job["group"],
    auto_offset_reset="earliest",
    auto_create_topics=False,
    consumer_extra_config={"session.timeout.ms": 45_000},
)
source = app.topic(job["input"], value_deserializer="bytes", key_deserializer="bytes")
sink = app.topic(job["output"], value_serializer="bytes", key_serializer="bytes")
app.dataframe(source).apply(predict, metadata=True).to_topic(sink)
app.run()
