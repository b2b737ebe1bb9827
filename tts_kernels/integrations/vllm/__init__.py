"""An attention backend over KV memory of vLLM, which loads it as a plugin (docs/integrations/vllm.md)."""
