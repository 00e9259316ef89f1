"""Grammars of answers: from regular expressions and JSON Schemas to automata over tokens. No model, no torch."""
