"""Small models with a known mistake, trained in seconds: `analyses.recall`, `.arithmetic` and `.associative_memory`.

One factory makes the transformers, on either host; one training loop trains them, cached and resumable.
"""
