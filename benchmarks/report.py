"""What the benchmarks share: variants that take turns in one run, ratios turn by turn, and a report that says where."""

import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from helper.files.atomic import write_bytes
from helper.files.provenance import device_name, git_commit, versions

CPU = torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait for a GPU, so that a clock shows when its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Times:
    """Seconds of each variant, a value a turn."""

    def __init__(self, seconds: dict[str, list[float]]):
        self.seconds = seconds

    def table(self, unit: str, scale: float) -> list[str]:
        lines = [f"| variant | {unit}, minimum | median |", "|---|---|---|"]
        for name, values in self.seconds.items():
            lines.append(f"| {name} | {scale * min(values):.3f} | {scale * self.median(name):.3f} |")
        return lines + [""]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def paired(self, top: str, bottom: str) -> float:
        """The median of the ratios turn by turn, which cancels slow drift."""
        return statistics.median(x / y for x, y in zip(self.seconds[top], self.seconds[bottom], strict=True))

    def ratio(self, top: str, bottom: str, meaning: str) -> str:
        """Both ratios of times: of the minima, and turn by turn."""
        minima = min(self.seconds[top]) / min(self.seconds[bottom])
        return (
            f"- {meaning} ({top} / {bottom}): {minima:.3f} by the minima, {self.paired(top, bottom):.3f} by the median "
            "of turns"
        )


def compare(variants: dict[str, Callable[[], float]], repeats: int) -> Times:
    """Measure all variants in turn, in a new order each time, `repeats` times after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order, rng = list(variants.items()), random.Random(0)
    for turn in range(repeats + 1):
        rng.shuffle(order)  # or one variant would always run on what another leaves in the caches
        for name, measure in order:
            time.sleep(0.2)  # the variant before may have left work behind: a loader's worker reads ahead
            value = measure()
            if turn:
                seconds[name].append(value)
    return Times(seconds)


def write_report(title: str, lines: list[str], output: str | None, device: torch.device = CPU) -> None:
    """Print the report, and write it to a file if one is named. device: on which it was measured."""
    print(saved_report(title, lines, output, device))


def saved_report(title: str, lines: list[str], output: str | None, device: torch.device) -> str:
    """The report, which is also written to a file if one is named."""
    where = ", ".join(f"{name} {version}" for name, version in versions().items())
    text = "\n".join(
        [
            title.strip().splitlines()[0],
            "",
            f"Command: {shlex.join(['python', '-m', f'benchmarks.{Path(sys.argv[0]).stem}', *sys.argv[1:]])}",
            f"Device: {device_name(device)}; {where}; commit {git_commit()}",
            "",
            *lines,
            "",
        ]
    )
    if output:
        write_bytes(Path(output), text.encode(), "--output")
    return text
