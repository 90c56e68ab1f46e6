"""A linear associative memory that stores its noise as one component: the smallest model of what truncation removes.

memory = associative_memory.simulate(5, 0.6)
associative_memory.rank_table(memory)
"""

from analyses.toys.associative_memory import Memory as Memory
from analyses.toys.associative_memory import dynamics, rank_table, simulate
from analyses.toys.associative_memory import noise_singular_value as noise_singular_value

__all__ = [
    "dynamics", "rank_table", "simulate",
]  # fmt: skip
