"""Runs build, GPU tests, sanitizers and benchmarks within nine minutes: make gpu-check OUT=folder

Every phase is a process with a time limit; a failed phase does not stop the others.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import typer
from rich.console import Console

from benches.gpu.report import markdown

ROOT = Path(__file__).parents[2]
TOTAL_SECONDS = 530.0  # of nine minutes; the rest is for writing the report
BENCH_MARGIN = 20.0  # an entry that has begun may take that long


class Phase(NamedTuple):
    name: str
    outcome: str  # passed, failed or timed out
    seconds: float
    summary: str  # the last line of its output


def run(name: str, commands: list[list[str]], limit: float, log: Path) -> Phase:
    """Runs commands one after the other until one fails, their output in a log, all within limit seconds."""
    begin = time.monotonic()
    outcome = "passed"
    with log.open("ab") as output:
        for command in commands:
            if outcome == "passed":
                outcome = run_command(command, max(1.0, begin + limit - time.monotonic()), output)
    lines = log.read_text(errors="replace").strip().splitlines()
    return Phase(name, outcome, time.monotonic() - begin, lines[-1].strip("= ")[:200] if lines else "")


def run_command(command: list[str], limit: float, output: BinaryIO) -> str:
    """Its outcome, as of `Phase`."""
    try:
        # A group of its own, so that a compiler or a sanitizer's child ends with it.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=output, stderr=output, start_new_session=True
        )
    except OSError as error:
        output.write(f"{command[0]}: {error}\n".encode())
        return "failed"
    try:
        return "failed" if process.wait(limit) else "passed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "timed out"


def environment() -> dict[str, str]:
    """Imports from this tree; tools beside Python come first, CUDA's are found where it usually lies too."""
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'python'}", "PATH": os.pathsep.join(paths)}


def build_commands() -> list[list[str]]:
    build = "build/gpu"
    configure = ["cmake", "--fresh", "-S", ".", "-B", build, "-G", "Ninja", "-DTTS_CUDA=ON"]
    configure.append(f"-DPython_EXECUTABLE={sys.executable}")
    pybind11 = importlib.util.find_spec("pybind11")
    if pybind11 and pybind11.origin:
        configure.append(f"-Dpybind11_DIR={Path(pybind11.origin).parent / 'share/cmake/pybind11'}")
    return [configure, ["cmake", "--build", build], ["cmake", "--install", build, "--prefix", "."]]


def test_command() -> list[str]:
    """The GPU tests; in several processes where possible, as kernels are compiled when first called."""
    workers = max(1, min(12, (os.cpu_count() or 1) - 2))
    parallel = ["-n", str(workers)] if importlib.util.find_spec("xdist") else []
    return [sys.executable, "-m", "pytest", "-m", "gpu", "-q", *parallel]


def sanitizer_commands(tool: str) -> list[list[str]]:
    # Only Python: not the compilers that Triton starts.
    options = f"--tool {tool} --error-exitcode 1 --target-processes application-only"
    return [["compute-sanitizer", *options.split(), sys.executable, "-m", "benches.gpu.sanitize"]]


def machine() -> dict[str, str]:
    def output(*command: str) -> str:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        return done.stdout.strip()

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    gpu = output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    nvcc = re.search(r"release ([\d.]+)", output("nvcc", "--version"))
    packages = ("torch", "triton", "transformers", "numpy", "flashinfer-python")
    changed = output("git", "status", "--porcelain", "--untracked-files=no") not in ("", "unknown")
    return {
        "GPU, driver, memory": gpu,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": output("git", "rev-parse", "HEAD") + (" with changes" if changed else ""),
        "python": sys.version.split()[0],
        "nvcc": nvcc[1] if nvcc else "unknown",
        **{package: version(package) for package in packages},
    }


def read_results(file: Path) -> list[dict[str, object]]:
    """The benchmark's records; a line cut short by the time limit is dropped."""
    results = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return results


def main(
    out: Annotated[Path, typer.Argument(help="Folder for report.json, report.md and the logs.")],
) -> None:
    """Checks this tree on this machine's GPU."""
    console = Console()
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = out / "bench.jsonl"
    for file in (results, *out.glob("*.log")):
        file.unlink(missing_ok=True)
    begin = time.monotonic()
    phases: list[Phase] = []

    def phase(name: str, commands: list[list[str]], limit: float) -> None:
        console.print(f"[bold]{name}[/], at most {limit:.0f} s")
        done = run(name, commands, limit, out / f"{name}.log")
        phases.append(done)
        color = "green" if done.outcome == "passed" else "red"
        console.print(f"  [{color}]{done.outcome}[/] after {done.seconds:.0f} s: ", end="")
        console.print(done.summary, markup=False, highlight=False)

    visible = "import torch; print(torch.cuda.get_device_name())"
    phase("device", [[sys.executable, "-c", visible]], 60)
    phase("build", build_commands(), 120)
    phase("tests", [test_command()], 140)
    phase("memcheck", sanitizer_commands("memcheck"), 90)  # compiles what racecheck then finds compiled
    phase("racecheck", sanitizer_commands("racecheck"), 60)
    left = TOTAL_SECONDS - (time.monotonic() - begin)
    bench = [sys.executable, "-m", "benches.gpu.bench", "--json", str(results)]
    phase("bench", [[*bench, "--budget", str(max(0.0, left - BENCH_MARGIN))]], left)

    report = {
        "machine": machine(),
        "phases": [done._asdict() for done in phases],
        "results": read_results(results),
    }
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    results.unlink(missing_ok=True)  # all of it is in report.json
    (out / "report.md").write_text(markdown(report))
    console.print(f"{out / 'report.md'} after {time.monotonic() - begin:.0f} s")
    raise typer.Exit(any(done.outcome != "passed" for done in phases if done.name != "bench"))


if __name__ == "__main__":
    typer.run(main)
