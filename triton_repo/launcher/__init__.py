"""What starts tritonserver and the gateway, watches them, starts them again, and ends them: ``diffgemma-serve``."""
