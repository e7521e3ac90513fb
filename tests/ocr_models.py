"""The models of the package rapidocr-onnxruntime, and its own code around them, without the libraries that it needs besides."""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import pytest


def folder() -> Path:
    """Where the package lies; skips the test where it is not installed."""
    try:
        return Path(str(metadata.distribution("rapidocr-onnxruntime").locate_file("rapidocr_onnxruntime")))
    except metadata.PackageNotFoundError:
        pytest.skip("rapidocr-onnxruntime is not installed")


def model(name: str) -> Path:
    """``det``, ``rec`` or ``cls``."""
    return next((folder() / "models").glob(f"*_{name}_infer.onnx"))


def _module(path: str) -> Any:
    """A module of the package whose own imports stand for nothing: what is called here does not use them."""
    names = (
        "pyclipper",
        "PIL",
        "shapely",
        "shapely.geometry",
        "rapidocr_onnxruntime",
        "rapidocr_onnxruntime.utils",
    )
    stand_ins: dict[str, Any] = {name: mock.MagicMock() for name in names}
    package = f"rapidocr_stand_in_{Path(path).parent.name}"
    stand_ins[package] = types.ModuleType(package)
    stand_ins[package].__path__ = [str((folder() / path).parent)]
    with mock.patch.dict(sys.modules, stand_ins):
        spec = importlib.util.spec_from_file_location(f"{package}.{Path(path).stem}", folder() / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def detector_input(picture: Any) -> Any:
    """(3, height, width): what the package feeds its detector for a BGR picture."""
    return _module("ch_ppocr_det/utils.py").DetPreProcess(736, "min", [0.5] * 3, [0.5] * 3)(picture)[0]


def angle_input(picture: Any) -> Any:
    """(3, 48, 192): what the package feeds its angle classifier for one BGR line."""
    classifier = _module("ch_ppocr_cls/text_cls.py").TextClassifier
    one = classifier.__new__(classifier)
    one.cls_image_shape = [3, 48, 192]
    return one.resize_norm_img(picture)


def recognizer_input(picture: Any) -> Any:
    """(3, 48, width): what the package feeds its recogniser for one BGR line."""
    recognizer = _module("ch_ppocr_rec/text_recognize.py").TextRecognizer
    one = recognizer.__new__(recognizer)
    one.rec_image_shape = [3, 48, 320]
    return one.resize_norm_img(picture, max(320 / 48, picture.shape[1] / picture.shape[0]))


def crops(picture: Any, boxes: list[Any]) -> list[Any]:
    """The parts of a BGR picture inside rotated boxes, (4, 2) each, as the package cuts them."""
    found: list[Any] = _module("main.py").RapidOCR.get_crop_img_list(None, picture, boxes)
    return found
