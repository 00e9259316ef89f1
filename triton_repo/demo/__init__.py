"""``make demo``: train, build, serve, answer, judge, report."""
