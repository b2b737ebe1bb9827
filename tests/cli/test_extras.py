"""What works without the optional packages, and the line that names a missing one. Modules are hidden in a
process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
from tts_decode.errors import MissingExtraError
from tts_decode.extras import INSTALLS, require

ROOT = Path(__file__).parents[2]

HIDE = """if True:
    import sys
    sys.modules.update(dict.fromkeys({hidden}))  # None: not found
"""
MODEL_STACK = ("transformers", "safetensors", "tokenizers", "gguf", "accelerate", "huggingface_hub")


def command(extra: str) -> str:
    return f"pip install 'tts-kernels[{extra}]' (in a checkout: '.[{extra}]')"


def run_without(hidden: tuple[str, ...], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=set(hidden)) + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_search_over_a_server_needs_the_base_installation_only() -> None:
    code = """
    sys.path.insert(0, sys.argv[1])
    from openai_server import Server, choice
    from tts_decode import OpenAICompletions, SamplingParams, TextDecoder
    from tts_decode.rewards import verifier
    from tts_decode.search import beam_search, self_consistency
    server = Server()
    server.answer = lambda body: choice("The answer is 4.", "stop", stop_reason=None)
    decoder = TextDecoder(OpenAICompletions(server.url, "tiny"), sampling=SamplingParams(stop="\\n"))
    async def search(strategy, **options):
        return await strategy(await decoder.root("2 + 2 =\\n"), n=2, **options)
    print(decoder.run(search(self_consistency)).answer)
    print(decoder.run(search(beam_search, beam_width=1, scorer=verifier(lambda text: "4" in text))).answer)
    server.close()
    """
    done = run_without(tuple(INSTALLS), code, str(ROOT / "tests/helpers"))
    assert done.stdout == "The answer is 4.\n" * 2, done.stderr


@pytest.mark.parametrize(
    ("hidden", "statement", "missing", "brings"),
    [
        (MODEL_STACK, "from tts_decode import TreeDecoder", "transformers", command("hf")),
        (MODEL_STACK, "from tts_decode.rewards import load_reward_model", "safetensors", command("hf")),
        (
            ("scipy",),
            "from tts_decode.select import cluster; cluster([[1.0], [2.0]])",
            "scipy",
            command("search"),
        ),
        (
            ("reasoning_gym",),
            "from tts_decode.tasks import default_tasks; default_tasks()",
            "reasoning_gym",
            command("demo"),
        ),
        (
            ("math_verify",),
            "from tts_decode.grading import same_answer; same_answer('x+1', '1+x')",
            "math_verify",
            command("math"),
        ),
        (
            ("datasets",),
            "from tts_decode.tasks import read_tasks; read_tasks('openai/gsm8k')",
            "datasets",
            "pip install datasets",
        ),
        (
            ("pyarrow",),
            "from tts_decode.search import write_parquet; write_parquet([], '.')",
            "pyarrow",
            command("results"),
        ),
        (
            ("matplotlib",),
            "from tts_decode.bench.plots import styled_pyplot as p; p()",
            "matplotlib",
            command("plot"),
        ),
        (
            ("sentence_transformers",),
            "from tts_decode.search import sentence_embedder; sentence_embedder()",
            "sentence_transformers",
            "pip install sentence-transformers",
        ),
        (("its_hub",), "import tts_decode.integrations.its_hub", "its_hub", "pip install 'its_hub[lm]'"),
        (
            ("reasoners",),
            "import tts_decode.integrations.llm_reasoners",
            "reasoners",
            "pip install --no-deps llm-reasoners",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    hidden: tuple[str, ...], statement: str, missing: str, brings: str
) -> None:
    done = run_without(hidden, f"\n    {statement}")
    last = done.stderr.splitlines()[-1]
    assert last == f"tts_decode.errors.MissingExtraError: {missing}: not installed; run: {brings}"


@pytest.mark.parametrize(
    ("module", "absent"),
    [("tts_decode", {"TreeBranch", "TreeDecoder"}), ("tts_decode.rewards", {"load_reward_model"})],
)
def test_names_that_need_a_missing_package_are_no_attributes(module: str, absent: set[str]) -> None:
    code = f"""
    import importlib, inspect, json, pydoc
    module = importlib.import_module("{module}")
    from {module} import *
    print(json.dumps(sorted({absent} & set(dir(module)))))
    print(json.dumps(sorted({absent} & set(globals()))))
    print(json.dumps([hasattr(module, name) for name in {absent}]))
    members = [name for name, _ in inspect.getmembers(module)]
    print(json.dumps(sorted(set(module.__all__) - set(members))))
    print("Scorer" in pydoc.render_doc(module))
    try:
        module.{min(absent)}
    except AttributeError as error:
        print(error)
    """
    done = run_without(MODEL_STACK, code)
    *lists, documented, told = done.stdout.splitlines()
    assert [json.loads(line) for line in lists] == [[], [], [False] * len(absent), []], done.stderr
    assert documented == "True"
    assert re.fullmatch(
        rf"module '{module}' has no attribute '{min(absent)}': \w+: not installed; "
        r"run: pip install 'tts-kernels\[hf\]' \(in a checkout: '\.\[hf\]'\)",
        told,
    )


@pytest.mark.parametrize("module", ["tts_decode", "tts_kernels"])
def test_the_faces_list_what_they_export(module: str) -> None:
    face = import_module(module)
    assert {name for name in dir(face) if not name.startswith("__")} == set(face.__all__) - {"__version__"}
    assert {"__all__", "__doc__", "__name__", "__version__"} <= set(dir(face))


def test_the_version_is_told_without_typer() -> None:
    done = run_without(("typer", "rich"), "\n    from tts_decode.cli import main\n    main()", "--version")
    assert (done.stdout.splitlines()[0], done.returncode) == (f"tts-decode {version('tts-kernels')}", 0)


@pytest.mark.parametrize(
    ("hidden", "arguments", "line"),
    [
        (("typer",), ["info"], "typer: not installed; run: " + command("search")),
        (
            MODEL_STACK,
            ["search", "1 + 1"],
            "transformers: not installed; run: " + command("hf"),
        ),
        (("fastapi",), ["serve"], "fastapi: not installed; run: " + command("serve")),
        (
            ("reasoning_gym",),
            ["compare", "--limit", "1"],
            "reasoning_gym: not installed; run: " + command("demo"),
        ),
    ],
)
def test_the_command_says_in_one_line_what_is_missing(
    hidden: tuple[str, ...], arguments: list[str], line: str
) -> None:
    done = run_without(hidden, "\n    from tts_decode.cli import main\n    main()", *arguments)
    assert done.stderr.splitlines()[0] == f"tts-decode: {line}"
    assert not done.stderr.splitlines()[1:] or done.stderr.splitlines()[1].startswith(
        "hint: tts-decode doctor"
    )
    assert done.returncode == 1


def test_the_named_command_adds_an_extra_to_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """From what the installation says of itself: no index has to know the package."""
    extras = {
        name[1] for name in map(re.compile(r"tts-kernels\[(.*)\]").fullmatch, INSTALLS.values()) if name
    }
    assert extras <= set(metadata("tts-kernels").get_all("Provides-Extra") or ())
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    pip = [sys.executable, "-m", "pip", "--isolated", "install", "--dry-run", "--no-index"]
    done = subprocess.run([*pip, "tts-kernels[hf,search,serve]"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout


def test_a_broken_package_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sentence_transformers.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has") as caught:
        require("sentence_transformers")
    assert not isinstance(caught.value, MissingExtraError)


def test_the_extras_bring_what_the_messages_promise() -> None:
    """Each module's package is required by the extra itself."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = {name: body for name, body in re.findall(r"^(\w+) = \[(.*?)\]\n", section, re.M | re.S)}
    for module, target in INSTALLS.items():
        extra = re.fullmatch(r"tts-kernels\[(\w+)\]", target)
        if extra:
            assert re.search(rf'"{module.replace("_", "[_-]")}(\[\w+\])?[">]', extras[extra[1]]), module
