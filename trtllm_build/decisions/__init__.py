"""Typed decisions: questions become canvases to be read, and what was read becomes answers."""
