"""The house rules as data: allowed imports of each room, and uses of other projects' private names.

A room is a folder of a package, or a module next to the folders.
"""

from __future__ import annotations

# Package -> room -> rooms of the same package that it may import. The face of a package, "", imports any. An
# integration stands outside and imports the face.
MAY_IMPORT: dict[str, dict[str, set[str]]] = {
    "tts_kernels": {
        "_core": set(),
        "_namespace": set(),
        "errors": set(),
        "device": set(),
        "machine_memory": set(),
        "reference": set(),
        "checks": {"_core"},
        "shutdown": {"_core"},
        "backends": {"_core", "checks"},
        "plans": {"_core", "backends", "checks", "device", "errors"},
        "ops": {"_core", "_namespace", "backends", "checks", "plans"},
        "pool": {"checks", "device", "machine_memory", "ops", "plans"},
        "layers": {"_core", "checks", "ops", "plans", "pool"},
        "integrations": {"", "_core", "_namespace", "checks", "device", "errors", "ops", "plans", "pool"},
    },
    "tts_decode": {
        "errors": set(),
        "extras": {"errors"},
        "version": set(),
        "default_model": {"errors"},
        "records": set(),
        "select": {"extras"},
        "grading": {"errors", "extras", "select"},
        "sandbox": {"errors"},
        "cost": set(),
        "core": {"errors", "extras", "cost"},
        "tasks": {"errors", "extras", "records", "select", "grading", "sandbox"},
        "model": {"errors", "extras", "default_model", "cost", "core"},
        "completions": {"errors", "cost", "core"},
        "decoding": {"errors", "version", "default_model", "cost", "core", "model", "select"},
        "rewards": {"errors", "extras", "core", "model", "decoding", "select"},
        "search": {
            *("errors", "extras", "cost", "core", "records", "select", "grading", "rewards", "completions"),
        },
        "bench": {"errors", "extras", "cost", "core", "model", "decoding", "rewards", "search", "tasks"},
        "serve": {
            *("errors", "extras", "core", "records", "model", "decoding", "completions", "rewards", "search"),
        },
        "cluster": {
            *("errors", "extras", "version", "cost", "core", "records", "decoding", "rewards", "search"),
        },
        "replicas": {"errors", "extras", "records", "decoding", "serve", "cluster"},
        "sweeps": {"errors", "extras", "records", "select"},
        "view": {"version", "records", "search"},
        "plots": {"extras", "version", "core", "select", "search"},
        "integrations": {"extras", "core", "decoding", "rewards"},
        "cli": {
            *("errors", "extras", "version", "default_model", "cost", "core", "records", "select", "tasks"),
            *("grading", "sandbox"),
            *(
                "model",
                "decoding",
                "completions",
                "rewards",
                "search",
                "bench",
                "serve",
                "view",
                "sweeps",
                "plots",
                "cluster",
                "replicas",
            ),
        },
        "__main__": {"cli"},
    },
}

# Package -> room -> other packages that it may import anywhere. Rooms that are not named import none.
PACKAGES: dict[str, dict[str, set[str]]] = {
    "tts_kernels": {
        "device": {"torch"},
        "reference": {"torch"},
        "checks": {"torch", "numpy"},
        "backends": {"torch", "triton"},
        "plans": {"torch", "numpy"},
        "ops": {"torch"},
        "pool": {"torch"},
        "layers": {"torch"},
        "integrations": {"torch", "numpy", "vllm", "transformers"},
    },
    "tts_decode": {
        "errors": {"tts_kernels"},
        "select": {"tts_kernels", "numpy"},
        "cost": {"tts_kernels", "numpy"},
        "core": {"tts_kernels", "torch", "numpy", "llguidance"},
        "sandbox": {"tts_kernels"},
        "tasks": {"tts_kernels", "numpy"},
        "model": {
            *(
                "tts_kernels",
                "torch",
                "numpy",
                "transformers",
                "tokenizers",
                "huggingface_hub",
                "safetensors",
            ),
        },
        "completions": {"tts_kernels", "torch", "httpx"},
        "decoding": {"tts_kernels", "torch", "numpy", "safetensors"},
        "rewards": {"tts_kernels", "torch", "transformers", "safetensors"},
        "search": {"tts_kernels", "torch", "numpy"},
        "sweeps": {"numpy"},
        "cluster": {"tts_kernels", "torch"},
        "replicas": {"tts_kernels", "torch", "starlette", "prometheus_client"},
        "bench": {"tts_kernels", "torch", "numpy"},
        "serve": {"tts_kernels", "torch", "fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"},
        "integrations": {"torch", "numpy", "tts_kernels", "its_hub", "reasoners"},
        "cli": {"tts_kernels", "torch", "typer", "rich"},
    },
}

# The same for imports inside functions, and those for type checking.
LATE_PACKAGES: dict[str, dict[str, set[str]]] = {
    "tts_kernels": {},
    "tts_decode": {
        "select": {"scipy"},
        "grading": {"math_verify", "latex2sympy2_extended", "sympy"},
        "core": {"transformers", "typing_extensions"},
        "tasks": {"reasoning_gym", "datasets", "pyarrow"},
        "model": {"gguf"},
        "rewards": {"huggingface_hub"},
        "search": {"pyarrow", "sentence_transformers"},
        "sweeps": {"scipy", "pyarrow"},
        "cluster": {"ray"},
        "replicas": {"ray"},
        "bench": {"matplotlib", "transformers"},
        "plots": {"matplotlib"},
        "cli": {"packaging"},
    },
}

# Modules of tts_kernels that tts_decode uses, -> its rooms that do; None: all.
KERNEL_MODULES: dict[str, set[str] | None] = {
    "tts_kernels": None,
    "tts_kernels.checks": None,
    "tts_kernels.errors": {"errors"},
    "tts_kernels.device": {"model", "rewards", "cli"},
    "tts_kernels.machine_memory": {"model", "decoding", "cli"},
    "tts_kernels.reference.tree_attention": {"cli"},
    "tts_kernels.pool": {"decoding"},
    "tts_kernels.plans.tree_plan": {"cost"},
    "tts_kernels.plans.device_planner": {"model"},
    "tts_kernels.layers.decoder_layers": {"bench"},
    "tts_kernels.layers.gguf_blocks": {"model"},
    "tts_kernels._core": {"cli", "cluster"},
}

# Modules that import others by a computed name, or evaluate text (checks.arrays: a description's sizes).
DYNAMIC = {
    *("tts_decode", "tts_decode.extras", "tts_decode.cli.app", "tts_decode.cli.functions"),
    *("tts_kernels.backends.choice", "tts_kernels.checks.arrays"),
    "tts_decode.sandbox.checker",  # runs a model's program, in the sandbox
}

# Modules that read sys.modules: to put a user's file there, where dataclasses look their module up.
LOADERS = {"tts_decode.cli.functions"}

# Module or folder -> names with an underscore of other projects, which have no public ones for the same.
FOREIGN: dict[str, set[str]] = {
    "tts_decode.cli.signals": {"_exit"},
    "tts_decode.core.detokenizer": {"_decode"},
    "tts_decode.model.agreement": {
        *("_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks"),
        *("_attn_implementation", "_supports_sdpa"),
    },
    "tts_decode.model.hf": {"_attn_implementation_internal"},
    "tts_decode.model.hooks": {"_forward_hooks", "_forward_pre_hooks"},
    "tts_decode.model.weights": {
        *("_parameters", "_buffers", "_modules", "_version", "_forward_hooks", "_forward_pre_hooks"),
    },
    "tts_decode.model.packed_modules": {"_parameters", "_buffers", "_apply"},
    "tts_decode.model.quantised_modules": {"_apply"},
    "tts_decode.rewards.loading": {"_name_or_path"},
    "tts_decode.sandbox.child": {"_exit"},
    "tts_decode.search.blocking": {"_set_running_loop", "_enter_task", "_leave_task"},
    "tts_kernels.checks": {"_C", "_functorch", "_current_level", "_is_zerotensor"},
    "tts_kernels.ops.operator": {"_C", "_AutoDispatchBelowAutograd", "_schema"},
    "tts_kernels.shutdown": {"_current_frames"},
}
NAMED_TUPLE = {"_replace", "_asdict", "_fields"}

# Module -> private names that one class of it reads of another, or a function of a class.
FRIENDS: dict[str, set[str]] = {
    "tts_decode.core.state": {"_check"},
    "tts_decode.core.constraints.guide": {"_ended", "_state"},
    "tts_decode.core.constraints.matcher": {"_first", "_size", "_matcher", "_mask", "_tokens"},
    "tts_decode.decoding.kv_budget": {"_shares", "_uses", "_drop_pin"},
    "tts_decode.search.result": {"_check_nodes"},
}
