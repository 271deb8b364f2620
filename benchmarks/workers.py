"""Throughput of one and of two Ray workers with one thread each, start-up apart."""

import os
import time

import pandas as pd

from benchmarks.setting import Setting, stated
from benchmarks.timing import write
from steerlib.decoding import Sampling, make_arms
from steerlib.decoding.distributed import mapped
from steerlib.decoding.requests import make_requests
from steerlib.decoding.sweep import decode_block

BLOCKS = 8


def run(setting: Setting) -> pd.DataFrame:
    """Decode the same blocks of Expert-Anti-Expert with 1 and with 2 workers; keep the table."""
    about, size = stated(setting), setting.size
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which Ray starts with this environment
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=size.tokens)
    arms = make_arms("expert_anti_expert", size.alphas, profile="own", sampling=sampling)
    requests = make_requests(setting.frozen, setting.prompts(), arms, seeds=[0])
    each = len(requests) // BLOCKS
    blocks = [requests[i * each : (i + 1) * each] for i in range(BLOCKS)]
    rows = []
    for workers in (1, 2):
        started, ends = time.perf_counter(), []
        for _ in mapped(decode_block, (setting.frozen, {}), blocks, workers=workers):
            ends.append(time.perf_counter() - started)
        later = BLOCKS - workers  # blocks behind each worker's first, which waits for its start
        rate = later * each / (ends[-1] - ends[workers - 1])
        rows.append({"workers": workers, "seconds": round(ends[-1], 1), "answers per second": round(rate, 2)})
    ratio = rows[1]["answers per second"] / rows[0]["answers per second"]
    print(f"2 workers against 1: {ratio:.2f} times the answers per second")
    return write(
        "workers", [row | {"load": os.getloadavg()[0]} for row in rows], about=about, folder=setting.folder
    )
