#!/bin/sh
# Runs in the build: takes out of /usr/local what a worker never opens, and compiles the standard library.
set -eu
lib=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
cd /usr/local
rm -rf include share/man share/doc lib/pkgconfig lib/*.a lib/*/config-* lib/libpython3.so
find bin -mindepth 1 ! -name 'python*' -delete
rm -f bin/*-config
cd "$lib"
rm -rf site-packages ensurepip idlelib lib2to3 tkinter turtle.py turtledemo test pydoc_data \
    ctypes/test distutils/tests sqlite3/test unittest/test
mkdir site-packages
# Modules for terminals and databases, which need libraries that the image lacks.
cd lib-dynload
rm -f _curses*.so _dbm*.so _gdbm*.so _tkinter*.so _test*.so _xxtest*.so _ctypes_test*.so nis*.so readline*.so ossaudiodev*.so xx*.so
find /usr/local -name '*.so*' -type f -exec strip --strip-unneeded {} +
python3 -c "import platform; print(platform.python_version())" >"$lib/PYTHON_VERSION"
find "$lib" -name __pycache__ -prune -exec rm -rf {} +
# By content and not by time: what is compiled stays valid whatever copies it.
python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash "$lib"
