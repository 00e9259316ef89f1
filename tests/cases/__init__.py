"""Inputs and situations that have destroyed data, lied by an exit status or stopped somebody: `python -m tests.cases`.

Each case is a folder of a user's files, a command, and what must come of it. The command is a user's, in a process of
its own, in that folder; whatever it says, the user's files must be as they were.
"""
