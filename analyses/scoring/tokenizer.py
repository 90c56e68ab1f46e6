"""Moved to `analyses.tokens.tokenizer`; found here until its users import it from there."""

from analyses.tokens.tokenizer import Ids, Vocabulary, text_ids, vocabulary

__all__ = ["Ids", "Vocabulary", "text_ids", "vocabulary"]
