"""Temperature by denoising step."""


def temperature(remaining: int, total: int, t_min: float, t_max: float) -> float:
    """Temperature of the step at which ``remaining`` of ``total`` steps remain (this one included).

    Linear from ``t_max`` at the first step (remaining = total) down towards ``t_min``
    (transformers ``LinearTemperatureScheduleLogitsProcessor``).
    """
    return t_min + (t_max - t_min) * (remaining / total)
