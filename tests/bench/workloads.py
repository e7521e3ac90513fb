"""What is measured: models with random weights, the records that go in, and the worker's configuration for them."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import orjson
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

IR_VERSION, OPSET = 10, 17  # the onnx package writes newer ones by default than ONNX Runtime loads
FEATURES, CLASSES = 20, 10
DISTINCT = 1000
"""Different records per workload; a topic is filled by going round them."""


@dataclass(frozen=True)
class Workload:
    """One kind of record, the model it goes through, and how many of them make a round of some 0.5 to 2 s."""

    name: str
    title: str
    values: list[bytes]
    settings: dict[str, Any]
    """The configuration's keys below the top level: input.format, model, preprocess, postprocess, output.format."""
    records: int
    """Per round for a batching worker; the embedded broker keeps no more."""
    single_records: int
    """Per round for a loop that takes one record at a time."""
    batch: int
    """Best batch of the hand-written ways."""
    longer: int = 1
    """How many times as many make a round on a real broker."""
    wrap: tuple[str, ...] = ()
    """Payload filters around the values, the innermost first; the worker's configuration takes them off."""

    @property
    def long_records(self) -> int:
        return self.records * self.longer


def json_mlp(folder: Path) -> Workload:
    """JSON with 20 features -> 20-64-64-10 network -> full JSON results with the three best classes."""
    rows = np.random.default_rng(1).random((DISTINCT, FEATURES), np.float32)
    return Workload(
        "json",
        "JSON, 20 features -> MLP 20-64-64-10 -> JSON",
        [orjson.dumps({"features": row}, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows],
        {
            "input": {"format": "json"},
            "model": {"path": str(mlp(folder)), "name": "mlp"},
            "batching": {"max_size": 256},
            "postprocess": {"classification": {"top_k": 3}},
            "output": {"format": "json"},
        },
        records=100_000,
        single_records=3_000,
        batch=256,
        longer=3,
    )


def nested_mlp(folder: Path) -> Workload:
    """The same numbers inside objects, 20 fields by dotted path -> the same network and results."""
    plain = json_mlp(folder)
    names = [f"n{number}" for number in range(FEATURES)]
    values = [
        orjson.dumps(
            {
                "id": number,
                "reading": {"values": dict(zip(names, orjson.loads(value)["features"], strict=True))},
            }
        )
        for number, value in enumerate(plain.values)
    ]
    fields = [f"reading.values.{name}" for name in names]
    return replace(
        plain,
        name="paths",
        title="JSON, 20 fields by dotted path -> MLP 20-64-64-10 -> JSON",
        values=values,
        settings={**plain.settings, "input": {"format": "json", "fields": fields}},
    )


def wide_json(folder: Path) -> Workload:
    """JSON with 1,000 features, some 9 KB: what is worth wrapping."""
    rows = np.random.default_rng(1).random((200, 1000), np.float32).round(6)
    return Workload(
        "payloads",
        "JSON of 9 KB with 1,000 features -> MLP 1000-64-10 -> JSON, plain and wrapped",
        [orjson.dumps({"features": row}, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows],
        {
            "input": {"format": "json"},
            "model": {"path": str(many_features(folder)), "name": "mlp", "threads": 1},
            "batching": {"max_size": 64},
            "postprocess": {"classification": {"top_k": 3}},
            "output": {"format": "json"},
        },
        records=4_000,
        single_records=1_000,
        batch=64,
        longer=5,
    )


def raw_mlp(folder: Path) -> Workload:
    """Raw float32 tensors in and out, the same network."""
    rows = np.random.default_rng(1).random((DISTINCT, FEATURES), np.float32)
    return Workload(
        "raw",
        "raw float32 tensors in and out, the same MLP",
        [row.tobytes() for row in rows],
        {
            "input": {"format": "tensor"},
            "model": {"path": str(mlp(folder)), "name": "mlp"},
            "batching": {"max_size": 256},
            "output": {"format": "tensor", "headers": "none"},
        },
        records=200_000,
        single_records=3_000,
        batch=256,
        longer=3,
    )


AVRO_SCHEMA = {
    "type": "record",
    "name": "Reading",
    "fields": [{"name": f"f{i}", "type": "double"} for i in range(FEATURES)],
}


def avro_mlp(folder: Path) -> Workload:
    """Avro records of 20 doubles with a schema's id in front, the same network, the same JSON results."""
    import fastavro

    schemas = folder / "schemas"
    schemas.mkdir(exist_ok=True)
    (schemas / "1.avsc").write_text(json.dumps(AVRO_SCHEMA))
    parsed = fastavro.parse_schema(AVRO_SCHEMA)
    values = []
    for row in np.random.default_rng(1).random((DISTINCT, FEATURES), np.float32):
        stream = io.BytesIO(b"\0\0\0\0\1")
        stream.seek(5)
        fastavro.schemaless_writer(stream, parsed, {f"f{i}": float(value) for i, value in enumerate(row)})
        values.append(stream.getvalue())
    return Workload(
        "avro",
        "Avro, 20 fields -> MLP 20-64-64-10 -> JSON",
        values,
        {
            "input": {"format": "avro", "fields": [f"f{i}" for i in range(FEATURES)]},
            "registry": {"folder": str(schemas)},
            "model": {"path": str(mlp(folder)), "name": "mlp"},
            "batching": {"max_size": 256},
            "postprocess": {"classification": {"top_k": 3}},
            "output": {"format": "json"},
        },
        records=50_000,
        single_records=3_000,
        batch=256,
        longer=3,
    )


def raw_frames(folder: Path) -> Workload:
    """Raw 224 px frames of 150 KB -> a model that looks at a few pixels: what large records cost on their way."""
    values = [cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR) for frame in frames(64, 224)]
    return Workload(
        "frames",
        "raw 224 px frames of 150 KB -> a few pixels of each",
        [value.tobytes() for value in values],
        {
            "input": {"format": "tensor"},
            "model": {"path": str(few_pixels(folder)), "name": "pixels"},
            "batching": {"max_size": 64},
            "output": {"format": "tensor", "headers": "none"},
        },
        records=350,
        single_records=100,
        batch=64,
        longer=10,
    )


def referenced_frames(folder: Path) -> Workload:
    """The same frames in an S3 store on the loopback interface: the records name them."""
    port = folder / "shelf.port"
    options = {"endpoint": f"http://127.0.0.1:{port.read_text() if port.exists() else 1}", **STORE_OPTIONS}
    return Workload(
        "references",
        "raw 224 px frames of 150 KB in an S3 store -> a few pixels of each",
        [b'{"url": "s3://frames/%d"}' % number for number in range(64)],
        {
            "input": {
                "format": "tensor",
                "reference": {"from": "url", "allow": ["s3://frames/"], "options": options},
            },
            "model": {"path": str(few_pixels(folder)), "name": "pixels"},
            "batching": {"max_size": 64},
            "output": {"format": "tensor", "headers": "none"},
        },
        records=2_000,
        single_records=100,
        batch=64,
        longer=4,
    )


STORE_OPTIONS = {"region": "us-east-1", "access_key_id": "AKIAKEYKEY", "secret_access_key": "SECRETSECRET"}


def jpeg_squeezenet(folder: Path) -> Workload:
    """224 px JPEG frames -> a network of SqueezeNet 1.1's size -> the three best classes as JSON."""
    return _jpeg("jpeg", "JPEG 224 px -> SqueezeNet-sized -> JSON", squeezenet(folder), 300, 100)


def jpeg_resnet(folder: Path) -> Workload:
    """The same frames -> a network of ResNet-50's size."""
    return _jpeg("resnet", "JPEG 224 px -> ResNet-50-sized -> JSON", resnet50(folder), 60, 30)


def jpeg_int8(folder: Path) -> Workload:
    """The same frames -> the SqueezeNet-sized network as INT8, made by `streaminfer quantize` to take raw pixels."""
    made, pictures = folder / "squeezenet.int8.onnx", folder / "pictures"
    if not made.exists():
        pictures.mkdir(exist_ok=True)
        for number, frame in enumerate(frames(64, 224)):
            (pictures / f"{number}.jpg").write_bytes(frame)
        image = {name: IMAGE[name] for name in ("scale", "mean", "std")}
        command = ["quantize", str(squeezenet(folder)), "--data", str(pictures), "--out", str(made),
                   "--image", json.dumps(image), "--fold-preprocess"]  # fmt: skip
        subprocess.run([sys.executable, "-m", "worker", *command], check=True, stdout=subprocess.DEVNULL)
    plain = _jpeg("int8", "JPEG 224 px -> SqueezeNet-sized, INT8 from raw bytes -> JSON", made, 1000, 100)
    plain.settings["preprocess"] = {"image": {"size": [224, 224]}}
    return plain


def video(folder: Path) -> Workload:
    """Clips of 5 s at 360p, of which one picture a second goes through a network of SqueezeNet's size."""
    return Workload(
        "video",
        "MP4 clips of 5 s at 360p, 1 picture a second -> SqueezeNet-sized -> JSON",
        clips(16),
        {
            "input": {"format": "video"},
            "preprocess": {"video": {"fps": 1}, "image": IMAGE},
            "model": {"path": str(squeezenet(folder))},
            "batching": {"max_size": 8},
            "postprocess": {"classification": {"top_k": 3, "activation": "softmax"}},
            "output": {"format": "json"},
        },
        records=48,
        single_records=16,
        batch=1,
    )


def clips(count: int) -> list[bytes]:
    """H.264 clips of 125 pictures of 640 x 360, a view that moves over a larger picture."""
    import av

    found = []
    for seed in range(count):
        coarse = np.random.default_rng(seed).integers(0, 256, (12, 20, 3), np.uint8)
        view = cv2.resize(coarse, (960, 480), interpolation=cv2.INTER_CUBIC)
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "28"})
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            for number in range(125):
                part = np.ascontiguousarray(
                    view[number // 2 : number // 2 + 360, number * 2 : number * 2 + 640]
                )
                container.mux(stream.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
            container.mux(stream.encode())
        found.append(file.getvalue())
    return found


def wide(folder: Path) -> Workload:
    """Raw tensors of 256 floats -> three layers of 1,024: a network that takes some 100 us and gains from batches."""
    rows = np.random.default_rng(1).random((DISTINCT, 256), np.float32)
    graph, x, inputs = Graph(), "x", 256
    path = folder / "wide.onnx"
    for _ in range(3):
        x, inputs = graph.relu(graph.dense(x, inputs, 1024)), 1024
    return Workload(
        "wide",
        "raw tensors of 256 floats -> MLP 256-1024-1024-1024-10",
        [row.tobytes() for row in rows],
        {
            "input": {"format": "tensor"},
            "model": {"path": str(graph.save(path, [256], graph.dense(x, inputs, CLASSES))), "name": "wide"},
            "batching": {"max_size": 64},
            "output": {"format": "tensor", "headers": "none"},
        },
        records=15_000,
        single_records=1_000,
        batch=64,
    )


def text_minilm(folder: Path) -> Workload:
    """Texts of 5 to 200 words -> all-MiniLM-L6-v2 out of its installed packages -> embeddings as JSON."""
    tests = Path(__file__).resolve().parent.parent
    if str(tests) not in sys.path:
        sys.path.append(str(tests))
    from text_models import minilm, sentences

    model, tokenizer = minilm()
    return Workload(
        "text",
        "texts of 5 to 200 words -> MiniLM -> embeddings as JSON",
        [text.encode() for text in sentences(256, 5, 200)],
        {
            "input": {"format": "text"},
            "preprocess": {"text": {"tokenizer": str(tokenizer), "max_length": 512}},
            "model": {"path": str(model), "name": "minilm"},
            "batching": {"max_size": 64},
            "postprocess": {"embedding": {"pooling": "mean", "normalize": True}},
            "output": {"format": "json"},
        },
        records=256,
        single_records=64,
        batch=64,
        longer=4,
    )


def _jpeg(name: str, title: str, model: Path, records: int, single_records: int) -> Workload:
    return Workload(
        name,
        title,
        frames(64, 224),
        {
            "input": {"format": "image"},
            "preprocess": {"image": IMAGE},
            "model": {"path": str(model)},
            "batching": {"max_size": 4},
            "postprocess": {"classification": {"top_k": 3, "activation": "softmax"}},
            "output": {"format": "json"},
        },
        records=records,
        single_records=single_records,
        batch=4,
    )


IMAGE = {
    "size": [224, 224],
    "resize": "stretch",
    "layout": "nchw",
    "scale": 1 / 255,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
WORKLOADS = {
    "audio": lambda folder: _sound_work().audio_cnn(folder),
    "json": json_mlp,
    "paths": nested_mlp,
    "raw": raw_mlp,
    "avro": avro_mlp,
    "frames": raw_frames,
    "references": referenced_frames,
    "jpeg": jpeg_squeezenet,
    "resnet": jpeg_resnet,
    "int8": jpeg_int8,
    "video": video,
    "wide": wide,
    "payloads": wide_json,
    "text": text_minilm,
}
"""Maker of each workload by name; writes its model into the folder given."""


def _sound_work() -> Any:
    """The workload of sound, which imports this module."""
    return importlib.import_module("sound_work")


def frames(count: int, size: int) -> list[bytes]:
    """JPEG files of about 14 KB at 224 px: smooth shapes with some texture, as a camera gives."""
    random = np.random.default_rng(2)
    encoded = []
    for _ in range(count):
        coarse = random.integers(0, 256, (14, 14, 3), np.uint8)
        picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        picture += random.normal(0, 6, picture.shape)
        _, data = cv2.imencode(".jpg", picture.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 85])
        encoded.append(data.tobytes())
    return encoded


# -- models --------------------------------------------------------------------------------------------


class Graph:
    """Collects nodes and random weights; each method adds a layer and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def weight(self, shape: tuple[int, ...], fan_in: int) -> str:
        name = f"w{len(self.weights)}"
        values: NDArray[np.float32] = self._random.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        return self.node("Gemm", x, self.weight((inputs, outputs), inputs), self.weight((outputs,), 100))

    def conv(self, x: str, inputs: int, outputs: int, size: int, stride: int = 1, pad: int = 0) -> str:
        fan_in = inputs * size * size
        weights = (self.weight((outputs, inputs, size, size), fan_in), self.weight((outputs,), 100))
        return self.node("Conv", x, *weights, kernel_shape=[size, size], strides=[stride] * 2, pads=[pad] * 4)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def save(self, path: Path, item: list[int], last: str, takes: int = TensorProto.FLOAT) -> Path:
        """Write the model: ``x`` (n, *item), float32 or what it ``takes`` -> float32 ``y`` (n, classes)."""
        self.nodes[-1].output[0] = "y"
        assert last == f"{self.nodes[-1].op_type}_{len(self.nodes) - 1}", "the last node is the output"
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info("x", takes, ["n", *item])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])],
            self.weights,
        )
        model = helper.make_model(
            graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
        )
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def mlp(folder: Path) -> Path:
    """20-64-64-10, softmax in the graph."""
    graph = Graph()
    x = graph.relu(graph.dense("x", FEATURES, 64))
    x = graph.relu(graph.dense(x, 64, 64))
    return graph.save(
        folder / "mlp.onnx", [FEATURES], graph.node("Softmax", graph.dense(x, 64, CLASSES), axis=-1)
    )


def many_features(folder: Path) -> Path:
    graph = Graph()
    hidden = graph.relu(graph.dense("x", 1000, 64))
    return graph.save(folder / "many-features.onnx", [1000], graph.dense(hidden, 64, CLASSES))


def few_pixels(folder: Path) -> Path:
    """uint8 (N, 224, 224, 3) -> float32 (N, 3): the mean of every 32nd pixel's channels."""
    path = folder / "pixels.onnx"
    graph = Graph()
    constants = {"from": [0, 0], "to": [224, 224], "axes": [1, 2], "by": [32, 32]}
    graph.weights += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in constants.items()]
    few = graph.node("Cast", graph.node("Slice", "x", *constants), to=TensorProto.FLOAT)
    mean = graph.node("ReduceMean", few, axes=[1, 2], keepdims=0)
    return graph.save(path, [224, 224, 3], mean, TensorProto.UINT8)


def squeezenet(folder: Path) -> Path:
    """The layers of SqueezeNet 1.1 (0.35 GFLOP multiply-adds), random weights, 1,000 classes."""
    graph = Graph()
    x = graph.relu(graph.conv("x", 3, 64, 3, stride=2))
    x = _pool(graph, x)
    channels = 64
    for squeeze, expand, pool in (
        (16, 64, False), (16, 64, True), (32, 128, False), (32, 128, True),
        (48, 192, False), (48, 192, False), (64, 256, False), (64, 256, False),
    ):  # fmt: skip
        s = graph.relu(graph.conv(x, channels, squeeze, 1))
        wide = [
            graph.relu(graph.conv(s, squeeze, expand, 1)),
            graph.relu(graph.conv(s, squeeze, expand, 3, pad=1)),
        ]
        x, channels = graph.node("Concat", *wide, axis=1), 2 * expand
        if pool:
            x = _pool(graph, x)
    x = graph.relu(graph.conv(x, channels, 1000, 1))
    return graph.save(
        folder / "squeezenet.onnx", [3, 224, 224], graph.node("Flatten", graph.node("GlobalAveragePool", x))
    )


def resnet50(folder: Path) -> Path:
    """The layers of ResNet-50 with batch norms folded (4.1 GFLOP multiply-adds), random weights, 1,000 classes."""
    graph = Graph()
    x = _pool(graph, graph.relu(graph.conv("x", 3, 64, 7, stride=2, pad=3)), pad=1)
    channels = 64
    for blocks, width, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
        for block in range(blocks):
            step = stride if block == 0 else 1
            y = graph.relu(graph.conv(x, channels, width, 1))
            y = graph.relu(graph.conv(y, width, width, 3, stride=step, pad=1))
            y = graph.conv(y, width, 4 * width, 1)
            shortcut = graph.conv(x, channels, 4 * width, 1, stride=step) if block == 0 else x
            x, channels = graph.relu(graph.node("Add", y, shortcut)), 4 * width
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    return graph.save(folder / "resnet50.onnx", [3, 224, 224], graph.dense(x, channels, 1000))


def _pool(graph: Graph, x: str, pad: int = 0) -> str:
    return graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[pad] * 4)
