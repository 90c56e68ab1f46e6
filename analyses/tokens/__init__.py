"""Texts and items as token ids of one model: what it reads, and what it can be asked.

Prompts, metrics and scoring stand on this; it knows tasks and nothing above them.
"""
