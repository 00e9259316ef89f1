"""What measures, side by side with a peer; nothing here asserts a time. `python -m benchmarks.NAME --help`."""

from nemo_diffgemma.quiet import quiet_start

quiet_start()
