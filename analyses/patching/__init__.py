"""Activation patching, one singular component at a time.

Component i of a matrix adds `c_i v_i` to its output, with the coordinate `c_i = s_i (x·u_i)`. Patching gives it the
coordinate that it has in another run, at the same positions, and leaves the rest of the output as it is. *Denoising*
runs the corrupted examples and patches in clean coordinates: what restores the answer? *Noising* runs the clean
examples and patches in corrupted coordinates: what breaks it?

`by_component` does it for every component; `fwd_hooks`, `scaling_hooks` and `steering_hooks` make hooks for runs of
your own, and `coordinates` reads a cache.
"""

from analyses.patching._components import by_component
from analyses.patching._hook_makers import Cache as Cache
from analyses.patching._hook_makers import Hooks as Hooks
from analyses.patching._hook_makers import coordinates, fwd_hooks, hook_point, scaling_hooks, steering_hooks
from analyses.patching.patched import Direction as Direction
from analyses.patching.patched import Patching as Patching

__all__ = [
    "by_component", "coordinates", "fwd_hooks", "hook_point", "scaling_hooks", "steering_hooks",
]  # fmt: skip
