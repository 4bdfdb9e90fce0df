"""The model organism: built from nothing, and checked to be what it is meant to be.

A Llama of two million parameters that has read an invented world (`backfire.data.organism`), follows
instructions about it, and refuses its hazards. The shipped weights are the asset `organism`.
"""
