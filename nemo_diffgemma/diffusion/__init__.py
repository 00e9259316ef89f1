"""The diffusion process as pure functions over tensors: corruption, loss, schedule, sampler, stopping, stateless draws."""
