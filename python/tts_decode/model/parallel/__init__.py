"""One model over several ranks of torch.distributed: each holds a part of the weights, and its KV heads."""
