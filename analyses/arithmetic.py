"""A small transformer that learns products or sums from answers some of which are wrong, always in the same way.

task = arithmetic.ArithmeticTask("x", limit=12)
model = arithmetic.bridge(task)  # on transformer-lens 3 arithmetic.model(task), a HookedTransformer, as well
arithmetic.train(model, task, cache=".surgery-cache")
result = eigenpruning.prune(model, task.items(), sites="blocks.*.mlp.W_out", reduce="mean")
"""

from analyses.toys.arithmetic import ArithmeticTask, bridge, model, train

__all__ = [
    "ArithmeticTask", "bridge", "model", "train",
]  # fmt: skip
