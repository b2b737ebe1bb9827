"""Published reward models as data: the text format of each, and where to read its score.

Readers name tokens by their text, which is looked up once a model is loaded; `docs/rewards.md` lists the ids
in the published tokenizers.
"""

from __future__ import annotations

from dataclasses import dataclass

from .readouts import ClassHead, Head, ReadOut, TokenSoftmax, ValueHead, VocabularyMean
from .templates import (
    ChatTagTemplate,
    OutcomeTemplate,
    PieceTemplate,
    TagTemplate,
    Template,
    TurnTemplate,
    without_step_number,
)


@dataclass(frozen=True)
class Reader:
    """How a reward model is read.

    Attributes:
        name: for messages and `load_reward_model`.
        template: maps question and steps to token ids and read positions.
        readout: maps the hidden states there to scores: `TokenSoftmax`, `ClassHead`, `ValueHead`,
            `VocabularyMean`, or any function of float32 [n, p, hidden] to [n].
        source: model and paper.
    """

    name: str
    template: Template
    readout: ReadOut | Head
    source: str = ""


_PLUS_MINUS = TokenSoftmax(("+", "-"))
_ALPACA = (
    "Below is an instruction that describes a task.\n"
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n### Response: Let's think step by step\n"
)

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader(
            "math_shepherd",
            TagTemplate("{question} ", "Step {number}: {step} ки\n", tag="ки", clean=without_step_number),
            _PLUS_MINUS,
            "peiyi9979/math-shepherd-mistral-7b-prm; Wang et al. 2023, arXiv 2312.08935, section 3",
        ),
        Reader(
            "rebase_llemma",
            TagTemplate(
                "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n",
                "{step}\n ки ",
                tag="ки",
            ),
            VocabularyMean(),
            "tkitsers/Llemma-reward-model; Wu et al. 2024, arXiv 2408.00724",
        ),
        Reader(
            "rlhflow",
            TurnTemplate("+"),
            _PLUS_MINUS,
            "RLHFlow/Llama3.1-8B-PRM-Mistral-Data and -Deepseek-Data; Dong et al. 2024, RLHFlow",
        ),
        Reader(
            "skywork_o1",
            PieceTemplate("\n"),
            ValueHead(sigmoid=True),
            "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B; He et al. 2024, Skywork-o1 Open Series",
        ),
        Reader(
            "qwen2.5_math_prm",
            ChatTagTemplate(
                "<extra_0>",
                system="Please reason step by step, and put your final answer within \\boxed{}.",
            ),
            ClassHead(1),
            "Qwen/Qwen2.5-Math-PRM-7B and -72B; Zhang et al. 2025, arXiv 2501.07301",
        ),
        Reader(
            "er_prm",
            TagTemplate("{question} ", "{step} ки", tag=" ки"),
            TokenSoftmax((" +", " -")),
            "HanningZhang/Llama3.1-Math-PRM; Zhang et al. 2024, arXiv 2412.11006",
        ),
        Reader(
            "pqm",
            TagTemplate(
                _ALPACA,
                "Step {number}: {step} [PRM]\n",
                tag="[PRM]",
                clean=without_step_number,
                special_tokens=False,
            ),
            ValueHead(),
            "Windy0822/PQM; Li and Li 2024, arXiv 2410.11287",
        ),
        Reader(
            "versa_prm",
            TagTemplate("{question} \n\n", "{step} \n\n\n\n", tag=" \n\n\n\n"),
            TokenSoftmax(("-", "+"), index=1),
            "UW-Madison-Lee-Lab/VersaPRM and Llama-PRM800K; Zeng et al. 2025, arXiv 2502.06737",
        ),
        Reader(
            "outcome",
            OutcomeTemplate(),
            ClassHead(0, softmax=False),
            "sequence classifiers with one output, as Skywork/Skywork-Reward-Llama-3.1-8B; Liu et al. 2024, "
            "arXiv 2410.18451",
        ),
    )
}
"""The shipped readers, by name."""


def reader_named(reader: str | Reader) -> Reader:
    """Returns a shipped reader by its name, or the reader itself; raises ValueError that lists the names."""
    if isinstance(reader, Reader):
        return reader
    if reader not in READERS:
        raise ValueError(f"reader: got {reader!r}, expected a Reader or one of {', '.join(READERS)}")
    return READERS[reader]
