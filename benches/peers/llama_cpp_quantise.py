"""llama.cpp's quantiser, in its environment: llama_cpp_quantise.py SOURCE TARGET KIND THREADS

It chooses a kind for each tensor: Q4_K_M also contains Q6_K.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp as ll


def main(source: str, target: str, kind: str, threads: str) -> None:
    ll.llama_backend_init()
    params = ll.llama_model_quantize_default_params()
    params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = int(threads)
    params.allow_requantize = True  # the source may be Q8_0
    if code := ll.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama_model_quantize: {code}")


if __name__ == "__main__":
    main(*sys.argv[1:])
