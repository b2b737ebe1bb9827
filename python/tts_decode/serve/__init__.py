"""An HTTP server of OpenAI's protocol over one decoder: all requests share one tree.

Needs the packages of `tts-kernels[serve]`.
"""

from ..extras import require, require_tested

for _module in ("fastapi", "uvicorn", "prometheus_client"):
    require(_module)
require_tested("uvicorn")  # connection.py changes its protocol
