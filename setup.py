"""The one part pyproject.toml has no stable way to say: the compiled batch path, which no install depends on."""

import sys
from glob import glob

from setuptools import Extension, setup

FLAGS = (
    ["/std:c++17", "/O2", "/EHsc"]
    if sys.platform == "win32"
    else ["-std=c++17", "-O3", "-fvisibility=hidden"]
)

SOURCES = {"_records": ["records", "reader", "writer"]}
if sys.platform != "win32":
    SOURCES["_producer"] = ["producer"]  # finds librdkafka's functions by dlsym

setup(
    ext_modules=[
        Extension(
            f"worker.native.{name}",
            [f"worker/native/{source}.cpp" for source in sources],
            depends=sorted(glob("worker/native/*.hpp")),
            extra_compile_args=FLAGS,
            language="c++",
            optional=True,  # without a C++17 compiler the worker does the same work in Python
        )
        for name, sources in SOURCES.items()
    ]
)
