"""Marks in generated text: PRFs, schemes, engine adapters; detect, trace."""
