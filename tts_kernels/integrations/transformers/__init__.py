"""transformers' own `generate` over a tree of KV pages: `TreeCache` and attn_implementation="tts".

    register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="tts")
    cache = TreeCache(model.config)
    cache.prefill(model, input_ids, copies=64)
    model.generate(input_ids, cache=cache, num_return_sequences=64, do_sample=True)

`versions.TESTED` lists the versions of transformers that this was tested with; others are refused here.
"""

from .versions import check_version

check_version()

from .attention import register  # noqa: E402  the version first: others lack what these import
from .cache import CacheUse, TreeCache  # noqa: E402
from .errors import UnsupportedError, VersionError, WrongCacheError  # noqa: E402

__all__ = ["CacheUse", "TreeCache", "UnsupportedError", "VersionError", "WrongCacheError", "register"]
