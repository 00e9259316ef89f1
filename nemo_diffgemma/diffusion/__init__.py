"""The diffusion process as pure functions: corruption, loss, schedule, sampler, stopping, stateless draws."""
