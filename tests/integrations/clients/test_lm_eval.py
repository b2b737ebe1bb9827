"""lm-evaluation-harness over the server: likelihoods, greedy flags and texts are those of transformers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from needed import needs
from serving import Served

needs("lm_eval")

import lm_eval
from lm_eval.tasks import TaskManager

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("default")]
QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Paris", "a big red house", "Rome"], "answer": 0},
    {"question": "Three and four are", "choices": ["seven", "nine hundred"], "answer": 0},
]
CHOICE = """
task: tiny_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
"""
WRITE = """
task: tiny_write
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match}]
"""
DATA = """
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
"""
PAGE = Path(__file__).parents[3] / "docs/integrations/clients.md"


@pytest.fixture
def harness(served: Served, real_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Evaluates the tasks by name; its options go to the harness's model."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    real_model[1].save_pretrained(tmp_path / "tokenizer")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    data = tasks / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    for name, text in (("choice", CHOICE), ("write", WRITE)):
        (tasks / f"{name}.yaml").write_text(text + DATA.replace("FILE", str(data)))

    def run(task: str, **options: Any) -> list[dict[str, Any]]:
        arguments = {
            "model": "tiny",
            "base_url": f"{served.url}/v1/completions",
            "tokenizer": str(tmp_path / "tokenizer"),
            "tokenizer_backend": "huggingface",
            **options,
        }
        found = lm_eval.simple_evaluate(
            "local-completions",
            arguments,
            tasks=[task],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
        )
        return sorted(found["samples"][task], key=lambda sample: sample["doc_id"])

    return run


def likelihood(model: Any, tokenizer: Any, context: str, text: str) -> tuple[float, bool]:
    """Of the text behind its context, and whether its tokens are the most probable ones."""
    start = len(tokenizer(context).input_ids)
    ids = tokenizer(context + text, return_tensors="pt").input_ids
    with torch.no_grad():
        rows = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
    own = ids[0, start:]
    return float(rows.gather(1, own[:, None]).sum()), bool((rows.argmax(-1) == own).all())


@pytest.mark.parametrize("options", [{}, {"num_concurrent": 4}, {"batch_size": 2}], ids=str)
def test_likelihoods_are_those_of_a_forward(options: dict[str, Any], harness: Any, real_model: Any) -> None:
    flags = []
    for row, sample in zip(QUESTIONS, harness("tiny_choice", **options), strict=True):
        assert len(sample["resps"]) == len(row["choices"])
        for choice, ((value, is_greedy),) in zip(row["choices"], sample["resps"], strict=True):
            expected, flag = likelihood(*real_model, row["question"], f" {choice}")
            assert float(value) == pytest.approx(expected, abs=1e-3)
            assert str(is_greedy) == str(flag)
            flags.append(flag)
    assert set(flags) == {True, False}


@pytest.mark.parametrize("tokenized", [True, False])
def test_texts_are_those_of_transformers(tokenized: bool, harness: Any, real_model: Any) -> None:
    model, tokenizer = real_model
    for row, sample in zip(QUESTIONS, harness("tiny_write", tokenized_requests=tokenized), strict=True):
        ids = tokenizer(row["question"], return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert sample["resps"] == [[text.split("\n")[0]]]


def test_the_example_of_the_page(served: Served, real_model: Any, tmp_path: Path) -> None:
    """As it stands but for the address and the name of the model, without a network."""
    section = PAGE.read_text(encoding="utf-8").partition("## lm-evaluation-harness")[2]
    example = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)[1]
    for named, here in {"http://127.0.0.1:8000": served.url, "SmolLM2-135M-Instruct": "tiny"}.items():
        assert example.count(named) == 1
        example = example.replace(named, here)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-c", example],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    right = 0
    rows = [json.loads(line) for line in (tmp_path / "tasks/sums.jsonl").read_text().splitlines()]
    for row in rows:
        context = f"What is {row['sum']}? It is"
        found = [likelihood(*real_model, context, f" {choice}")[0] for choice in row["choices"]]
        right += found.index(max(found)) == row["answer"]
    told = re.findall(r"\|acc +\|[^|]*\| *([\d.]+)\|", done.stdout)
    assert [float(accuracy) for accuracy in told] == [right / len(rows)], done.stderr[-4000:]
