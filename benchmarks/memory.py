"""Peak memory of stage 2 for 2,000 and for 20,000 clouds of 64 points at d = 64: it does not grow with their number.

    python -m benchmarks.memory --output benchmarks/results/memory.txt

Runs generate_PCD_PI.py itself, on the digits, with an untrained ResNet8 as the teacher; peak resident memory (RSS) as
the operating system accounts it for each finished process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.report import write_report
from helper.files import checkpoint
from models import create_model

ROOT = Path(__file__).resolve().parent.parent


def main(args) -> None:
    lines = ["| clouds | peak RSS, MiB |", "|---|---|"]
    for count in args.clouds:
        with tempfile.TemporaryDirectory() as folder:
            teacher = {"model": create_model("resnet8", 10).state_dict(), "arch": "resnet8", "num_classes": 10}
            checkpoint.save(Path(folder) / "teacher" / "best.pth", teacher)
            options = ["--path_t", "teacher/best.pth", "--dataset", "digits", "--passes", "1000"]
            options += ["--num_clouds", str(count), "--device", "cpu"]
            process = subprocess.Popen([sys.executable, str(ROOT / "generate_PCD_PI.py"), *options], cwd=folder)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"generate_PCD_PI.py failed for {count} clouds")
            lines.append(f"| {count} | {usage.ru_maxrss / 1024:.0f} |")
    write_report(__doc__, lines, args.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clouds", type=int, nargs="+", default=[2000, 20000], help="(default: 2000 20000)")
    parser.add_argument("--output", default=None, help="also write the report to this file")
    main(parser.parse_args())
