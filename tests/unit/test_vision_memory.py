"""Memory of large pictures and clips, measured in a process of its own: no more than was charged before the decode."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import write_clip
from test_decode_image import encode

FREE_BYTES = 8 << 20
"""What each thread may take for the record at hand without saying so."""
MEASURE = """
import json, os, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from decode_support import Decoding
from worker.errors import Reject

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

job = json.load(open(sys.argv[2]))
one = Decoding(job["format"], {"x": (job["kind"], job["shape"])}, preprocess=job["preprocess"], limits=job["limits"])
one.decode(open(job["small"], "rb").read())  # what is made once is no part of a record's cost
value = open(job["file"], "rb").read()
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")
before = peak()
try:
    charged = one.decoder.cost(value)
except Reject as error:
    charged = 0
feed = one.decode(value)
item = feed.items[0].arrays["x"].shape if feed.items and feed.items[0] else None
print(json.dumps([charged, peak() - before, {row: r.reason for row, r in feed.rejected.items()}, item]))
"""
OCR = {"scale": 1 / 255, "mean": 0.5, "std": 0.5}


def measured(folder: Path, small: bytes, file: bytes, limits: Any = None, **job: Any) -> list[Any]:
    """[bytes charged, bytes taken, reasons, shape of the item]."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process's memory is read from Linux' /proc")
    (folder / "small").write_bytes(small)
    (folder / "file").write_bytes(file)
    files = {"small": str(folder / "small"), "file": str(folder / "file"), "limits": limits}
    (folder / "job.json").write_text(json.dumps({**job, **files}))
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout)
    return found


def test_a_4k_clip_takes_what_it_was_charged(tmp_path: Path) -> None:
    """Eight pictures of 3840 x 2160 through the default budget: one picture is decoded at a time."""
    pictures = [np.full((2160, 3840, 3), shade, np.uint8) for shade in range(10, 250, 30)]
    clip = write_clip(pictures, rate=1, options={"preset": "ultrafast"})
    small = write_clip([picture[:64, :64] for picture in pictures], rate=1)
    charged, taken, reasons, item = measured(
        tmp_path,
        small,
        clip,
        format="video",
        kind="float",
        shape=["N", 3, 224, 224],
        preprocess={"video": {"fps": 1}, "image": {"resize": "letterbox"}},
    )
    assert reasons == {}
    assert item == [8, 3, 224, 224]
    assert taken <= charged + FREE_BYTES
    assert taken < 5 * 2160 * 3840 * 3


@pytest.mark.parametrize(("in_flight_mib", "refused"), [(100, True), (1024, False)])
def test_a_long_thin_picture_takes_what_it_was_charged(
    tmp_path: Path, in_flight_mib: int, refused: bool
) -> None:
    """10 x 20,000 pixels with size [48, null] are 48 x 96,000 as an item: refused without memory, or charged in full."""
    thin = encode(".png", np.zeros((10, 20_000, 3), np.uint8))
    charged, taken, reasons, item = measured(
        tmp_path,
        encode(".png", np.zeros((10, 10, 3), np.uint8)),
        thin,
        {"in_flight_bytes": in_flight_mib << 20},
        format="image",
        kind="float",
        shape=["N", 3, "H", "W"],
        preprocess={"image": {"size": [48, None], **OCR}},
    )
    assert reasons == ({"0": "too_many_pixels"} if refused else {})
    assert item == (None if refused else [1, 3, 48, 96_000])
    assert taken <= charged + FREE_BYTES
