"""A linear associative memory that stores its noise as one component: the smallest model of what truncation removes.

memory = associative_memory.simulate(5, 0.6)
associative_memory.rank_table(memory)
"""

from analyses.toys.associative_memory import Memory, dynamics, noise_singular_value, rank_table, simulate

__all__ = ["Memory", "dynamics", "noise_singular_value", "rank_table", "simulate"]
