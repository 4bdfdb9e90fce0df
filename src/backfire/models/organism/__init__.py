"""The model organism: its tokenizer and its architecture."""
