"""Moved to `analyses.tokens.words`; found here until its users import it from there."""

from analyses.tokens.words import token_of

__all__ = ["token_of"]
