"""Groups of options that `search`, `compare` and `sweep` share, with the same defaults."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from ..core.params import SamplingParams
from ..core.stop_when import READY, StopWhen
from ..decoding.offload import KVOffload
from ..default_model import DEFAULT_MODEL
from ..model.sparse import SparseConfig, parse_budget
from ..tasks import Task
from . import model_options as model_opt
from . import options as opt
from . import problem_options as problem_opt
from . import sampling_options as sampling_opt
from .display import Display
from .errors import MIB, MOST, UsageError, at_least, usage_errors
from .judging import judged_by, read_problems, refuse_task_options
from .problems import Settings
from .session import Session, check_model_options, open_session

# Longest answer and step, in tokens. The default problems need a number, which fits into 64 tokens.
_LENGTHS = (256, 64)
_SHORT_LENGTHS = (64, 32)


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is held."""

    model: model_opt.Model = DEFAULT_MODEL
    dtype: model_opt.Dtype = "auto"
    weights: model_opt.Weights = "auto"
    device: model_opt.Device = "cpu"
    kv_mib: model_opt.KvMib = None
    kv_dtype: model_opt.KvDtype = "auto"
    kv_offload_mib: model_opt.KvOffloadMib = None
    kv_offload_folder: model_opt.KvOffloadFolder = None

    def __post_init__(self) -> None:
        """Raises UsageError here and not in each process of a cluster that opens the model."""
        check_model_options(self.model, self.dtype, self.device, self.kv_mib, self.kv_dtype, self.weights)
        self._offload()

    def open(
        self, *, shared: bool = False, display: Display | None = None
    ) -> AbstractContextManager[Session]:
        """Loads the model. shared, display: as in `open_session`."""
        return open_session(
            self.model,
            self.dtype,
            self.device,
            self.kv_mib,
            self.kv_dtype,
            weights=self.weights,
            shared=shared,
            offload=self._offload(),
            display=display,
        )

    def _offload(self) -> KVOffload | None:
        at_least(1, MOST // MIB, kv_offload_mib=self.kv_offload_mib)
        if self.kv_offload_mib is not None:
            return KVOffload(self.kv_offload_mib * MIB, self.kv_offload_folder)
        if self.kv_offload_folder is not None:
            raise UsageError("--kv-offload-folder: got a folder, expected --kv-offload-mib beside it")
        return None


@dataclass(frozen=True)
class ClusterOptions:
    """Which cluster runs the searches, and how."""

    ray: opt.Ray = None
    ray_actors: opt.RayActors = None
    ray_cpus: opt.RayCpus = None
    ray_start_seconds: opt.RayStartSeconds = None

    def __post_init__(self) -> None:
        at_least(1, **self._numbers)

    @property
    def _numbers(self) -> dict[str, int | None]:
        return {name: value for name, value in vars(self).items() if name != "ray"}

    def refuse_without_ray(self) -> None:
        """Raises UsageError for cluster options without --ray."""
        for name, value in self._numbers.items():
            if value is not None:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag}: got {value} without --ray, of which it says something")


@dataclass(frozen=True)
class SparseOptions:
    sparse: model_opt.Sparse = None
    sparse_share: model_opt.SparseShare = "branch"
    sparse_summaries: model_opt.SparseSummaries = "mean"
    sparse_dense_layers: model_opt.SparseDenseLayers = 2
    sparse_min_pages: model_opt.SparseMinPages = 16
    sparse_tail: model_opt.SparseTail = True

    def config(self) -> SparseConfig | None:
        """Returns None without --sparse; the other options are checked anyway."""
        try:
            budget = parse_budget("1" if self.sparse is None else self.sparse)
        except ValueError as error:
            raise UsageError(f"--sparse: {error}") from None
        with usage_errors(model_opt.SPARSE_OPTIONS):
            config = SparseConfig(
                budget,
                share=self.sparse_share,  # type: ignore[arg-type]  # checked there
                summaries=self.sparse_summaries,  # type: ignore[arg-type]
                dense_layers=self.sparse_dense_layers,
                min_pages=self.sparse_min_pages,
                keep_tail=self.sparse_tail,
            )
        return None if self.sparse is None else config


@dataclass(frozen=True)
class ProblemOptions:
    """The problems, and what judges the answers."""

    tasks: problem_opt.Tasks = None
    task_format: problem_opt.TaskFormat = None
    field: problem_opt.Fields = field(default_factory=list)
    split: problem_opt.Split = None
    verifier: problem_opt.Verifier = None
    unsafe_tools: problem_opt.UnsafeTools = False

    def read(self, seed: int, otherwise: list[Task]) -> list[Task]:
        """Returns --tasks, or else `otherwise`, judged by --verifier. seed: orders the choices of `gpqa`."""
        fields = problem_opt.parse_fields(self.field)
        if self.tasks is None:
            refuse_task_options(format=self.task_format, field=self.field, split=self.split)
            return judged_by(self.verifier, otherwise)
        found = read_problems(
            self.tasks,
            format=self.task_format,
            fields=fields,
            split=self.split,
            seed=seed,
            unsafe_tools=self.unsafe_tools,
        )
        return judged_by(self.verifier, found)


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn, and where steps and answers end."""

    temperature: sampling_opt.Temperature = 0.8
    top_k: sampling_opt.TopK = 0
    top_p: sampling_opt.TopP = 1.0
    min_p: sampling_opt.MinP = 0.0
    repetition_penalty: sampling_opt.RepetitionPenalty = 1.0
    frequency_penalty: sampling_opt.FrequencyPenalty = 0.0
    presence_penalty: sampling_opt.PresencePenalty = 0.0
    logit_bias: sampling_opt.LogitBias = field(default_factory=list)
    suppress: sampling_opt.Suppress = field(default_factory=list)
    stop: sampling_opt.Stop = field(default_factory=lambda: ["\\n"])
    stop_token: sampling_opt.StopToken = field(default_factory=list)
    stop_when: sampling_opt.StopWhenName = None
    json_schema: sampling_opt.JSONSchemaFile = None
    regex: sampling_opt.RegexOption = None
    grammar: sampling_opt.GrammarFile = None
    choice: sampling_opt.Choices = field(default_factory=list)
    top_logprobs: sampling_opt.TopLogprobs = 0
    self_certainty: sampling_opt.SelfCertainty = False
    max_tokens: sampling_opt.MaxTokens = None
    max_step_tokens: sampling_opt.MaxStepTokens = None

    def params(self, seed: int, *, short: bool = False) -> SamplingParams:
        """Returns the parameters. short: for the default problems. Raises UsageError."""
        longest, longest_step = _SHORT_LENGTHS if short else _LENGTHS
        with usage_errors():
            return SamplingParams(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                seed=seed,
                max_tokens=longest if self.max_tokens is None else self.max_tokens,
                max_step_tokens=longest_step if self.max_step_tokens is None else self.max_step_tokens,
                stop=tuple(sampling_opt.unescape(text) for text in self.stop),
                stop_token_ids=self.stop_token,
                suppress_token_ids=self.suppress,
                frequency_penalty=self.frequency_penalty,
                presence_penalty=self.presence_penalty,
                logit_bias=sampling_opt.parse_bias(self.logit_bias),
                top_logprobs=self.top_logprobs,
                self_certainty=self.self_certainty,
                constraint=sampling_opt.constraint(self.json_schema, self.regex, self.grammar, self.choice),
                stop_when=self._stop_when(),
            )

    def _stop_when(self) -> StopWhen | None:
        if self.stop_when is not None and self.stop_when not in READY:
            raise UsageError(f"--stop-when: got {self.stop_when!r}, expected {' or '.join(READY)}")
        return None if self.stop_when is None else READY[self.stop_when]


@dataclass(frozen=True)
class LimitOptions:
    """What a search may spend."""

    budget_tokens: opt.BudgetTokens = None
    budget_seconds: opt.BudgetSeconds = None
    budget_cost: opt.BudgetCost = None
    scorer_timeout: opt.ScorerTimeout = None
    tool_timeout: opt.ToolTimeout = None

    def settings(self, sampling: SamplingParams, *, chat: bool = True) -> Settings:
        return Settings(
            sampling,
            self.budget_tokens,
            self.budget_seconds,
            self.budget_cost,
            self.scorer_timeout,
            self.tool_timeout,
            chat=chat,
        )
