"""What holds for the whole suite. Imports none of our packages: their shapes are checked from the first import on.

The suite runs in two environments: transformer-lens 3.9, which has HookedTransformer and TransformerBridge, and the
newest 4.x, which has the bridge only. A test that needs HookedTransformer says so with the marker `hooked`, on the test
or on one of its parameters (`pytest.param(..., marks=pytest.mark.hooked)`), or by asking for the fixture
`hooked_transformer`; it is skipped on 4.x. The name is imported inside functions only: on 4.x the import alone raises.

On a machine with a GPU the suite hides it, so that it means the same everywhere; with SURGERY_CUDA=1 it is seen, and
tests/test_house/test_devices.py runs on it what it else runs on a pretended one (tests/pretend_cuda.py).

A test marked `long` takes many seconds and says little that shorter ones do not: only `make test-all` runs it.
"""

import os

# Before the first import of torch or huggingface_hub, in every test process and in the notebooks' kernels: nothing
# reaches a hub, and test processes that run side by side do not fight over cores.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "SURGERY_CUDA" not in os.environ:  # so that a GPU, where models would go unasked, changes nothing
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import random
from importlib.metadata import version
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

HAS_HOOKED_TRANSFORMER = int(version("transformer-lens").split(".")[0]) < 4

# `make test-shapes` and `make test-all` have every call checked against its annotations, in the modules that speak of
# shapes: it takes a third of the time, so `make test` does without.
ROOT = Path(__file__).resolve().parents[1]
SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("hooks", "surgery", "analyses")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "from jaxtyping" in path.read_text(encoding="utf-8")
]
if "SURGERY_CHECK_SHAPES" in os.environ:
    hook = jaxtyping.install_import_hook(SHAPED, "beartype.beartype").hook
    hook.should_instrument = frozenset(SHAPED).__contains__  # it is asked at every import of any module

# The same examples in every run, so that a failure is always met again: HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what takes long, but for `make test-all`, and what needs HookedTransformer where there is none.

    Notebooks come first: they take longest, and the models that they train are then ready for other tests.
    """
    items.sort(key=lambda item: item.get_closest_marker("notebook") is None)
    for item in items:
        if item.get_closest_marker("long") and "SURGERY_THOROUGH" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="takes long: make test-all runs it"))
    if HAS_HOOKED_TRANSFORMER:
        return
    skip = pytest.mark.skip(reason="needs HookedTransformer, which transformer-lens 4 no longer has")
    for item in items:
        if item.get_closest_marker("hooked") or "hooked_transformer" in getattr(item, "fixturenames", ()):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _same_seed_in_every_test() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def hooked_transformer() -> type:
    """The class HookedTransformer; a test that asks for it is skipped where transformer-lens has none."""
    from transformer_lens import HookedTransformer

    return HookedTransformer


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the `cache` of `recall.train`: no model is trained twice in a run, by whichever test process."""
    folder = tmp_path_factory.getbasetemp()
    shared = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained"
    shared.mkdir(exist_ok=True)
    return shared
