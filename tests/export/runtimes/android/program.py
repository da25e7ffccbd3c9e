"""What stands for a benchmark program on the stand-in device: prints a recorded output.

Median and average grow by 1 ms with each launch, so that the launches have a spread.
"""

import json
import os
import re
import signal
import sys
import time

root, mode = os.environ["STAND_IN"], os.environ.get("STAND_IN_MODE", "")
flags = dict(argument.removeprefix("--").split("=") for argument in sys.argv[1:])
log = f"{root}/{RECORDED}.log"  # noqa: F821  (the test writes RECORDED and OUTPUT above)
with open(log, "a+") as file:
    file.seek(0)
    before = len(file.readlines())
    entry = {**flags, "pid": os.getpid(), "affinity": sorted(os.sched_getaffinity(0))}
    entry["size"] = os.stat(flags["graph"]).st_size
    print(json.dumps(entry), file=file)
with open(f"{root}/order.log", "a") as file:
    print(flags["graph"], file=file)

if mode == "crash":
    print("INFO: STARTING!", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if mode == "status":
    print("ERROR: Failed to mmap model\nERROR: Benchmarking failed.", file=sys.stderr)
    sys.exit(1)
if mode == "hang":
    time.sleep(60)
if mode == "silent":
    sys.exit()


def later(match):
    return f"{match[1]}{float(match[2]) + 1000 * before:g}"


head, tail = OUTPUT.split("Running benchmark for at least 50")  # noqa: F821
print(head + "Running benchmark for at least 50", end="")
print(re.sub(r"(median=|avg\): (?=\S+$))([\d.]+)", later, tail, flags=re.MULTILINE))
