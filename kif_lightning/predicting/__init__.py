"""Answers of a learnt model: to prompts in Python, and to files of them (``kif predict``)."""
