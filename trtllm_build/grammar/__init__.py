"""Answers of a guaranteed form: grammars as automata over tokens, and exact inference with them."""
