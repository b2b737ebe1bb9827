"""One model over several ranks of torch.distributed: each holds part of the weights, and its KV heads."""
