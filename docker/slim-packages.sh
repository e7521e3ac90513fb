#!/bin/sh
# Runs in the build: takes out of /opt/streaminfer what a worker never opens, compiles the rest, and says where the worker is.
set -eu
home=/opt/streaminfer
cd "$home"/lib/python*/site-packages
find . -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
rm -rf numpy/f2py numpy/random/_examples numpy/_core/include numpy/_core/lib numpy/random/lib \
    onnxruntime/transformers onnxruntime/tools onnxruntime/quantization onnxruntime/datasets onnxruntime/backend \
    onnx/backend/test
# The runtime a second time, for programs in C: the Python module has its own inside.
rm -f onnxruntime/capi/libonnxruntime.so.*
find . \( -name '*.pyi' -o -name '*.pxd' -o -name '*.pyx' -o -name '*.h' -o -name '*.hpp' -o -name '*.c' -o -name '*.cpp' -o -name '*.a' \) -delete
# Its debug symbols. Not those of others: strip breaks libraries whose references auditwheel has rewritten.
strip --strip-unneeded csimdjson*.so
python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash .
echo "$home/app" >streaminfer.pth
rm -rf "$home"/include "$home"/lib64 "$home"/bin/activate* "$home"/bin/Activate*
find "$home/bin" -mindepth 1 ! -name 'python*' -delete
cat >"$home/bin/streaminfer" <<EOF
#!$home/bin/python
import sys

from streaminfer import main

sys.exit(main())
EOF
chmod 755 "$home/bin/streaminfer"
