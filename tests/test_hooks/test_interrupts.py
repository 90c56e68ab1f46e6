"""Ctrl-C at every line: the model comes back bit for bit, `active` tells the truth, the interrupt gets through."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import jaxtyping
import pytest
import torch
from models import ONE_OF_EACH, State, borrowed, tokens
from torch import nn

import hooks
import surgery
from analyses import attribution, metrics, patching
from hooks.editor import editor_of
from hooks.recording import recorded, replayed
from hooks.temporary import _in_use
from surgery import Compensated, Drop, KeepTop, Scale

SPEC = {"blocks.0.mlp.W_out": KeepTop(rank=3), "blocks.*.attn.W_Q": Drop([0])}
OVER = {"blocks.0.mlp.W_out": Scale({0: 0.5}), "blocks.1.attn.W_Q": Scale({1: 0.5})}
CONSTANT = {"blocks.1.mlp.W_out": Compensated(Drop([0]), [0.5] * 32)}
PAIR = {"blocks.0.mlp.W_in": Drop([0, 1])}
METRIC = metrics.logit(3)

CHANGES_A_MODEL = ("hooks/editor.py", "hooks/shadows.py", "hooks/temporary.py", "surgery/operations.py",
                   "surgery/_slot_states.py")  # fmt: skip


THOROUGH = "SURGERY_THOROUGH" in os.environ
"""Whether to strike every line each time it is run, not only the first time."""


@pytest.fixture(autouse=True)
def _shapes_are_checked_elsewhere():
    """Checks of shapes run a hundred lines for each of ours: here they would take most of the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Strike(KeyboardInterrupt):
    """The interrupt of a test, which nothing else raises."""


class _Tracers(dict):
    """What traces the lines of a code object, kept by code object: it is asked for at every call of any function."""

    def __init__(self, interrupt: "Interrupt") -> None:
        self.interrupt = interrupt

    def __missing__(self, code: CodeType) -> Callable | None:
        self[code] = self.interrupt.line if code.co_filename.endswith(self.interrupt.files) else None
        return self[code]


class Interrupt:
    """Raises at the n-th line that is run in some files; `at` says where that was."""

    def __init__(self, n: int, files: tuple[str, ...]) -> None:
        self.n, self.files, self.seen, self.at = n, files, 0, ("", "", 0)
        self.lines: list[tuple[str, int]] = []
        self.tracers = _Tracers(self)

    def __call__(self, frame: FrameType, event: str, argument: object) -> Callable | None:
        return self.tracers[frame.f_code]

    def line(self, frame: FrameType, event: str, argument: object) -> Callable:
        if event == "line":
            self.seen += 1
            self.lines.append((frame.f_code.co_filename, frame.f_lineno))
            if self.seen == self.n:
                code = frame.f_code
                self.at = (Path(code.co_filename).name, code.co_name, frame.f_lineno - code.co_firstlineno)
                raise Strike
        return self.line

    @property
    def out_of_reach(self) -> bool:
        """Whether it struck between `apply` and its block, or in an `__exit__` before anything could catch it."""
        return self.at[1] in ("__enter__", "__exit__")


def struck(act: Callable[[], object], n: int, files: tuple[str, ...]) -> Interrupt | None:
    """What happened when `act` was interrupted at line n; None if it has no so many lines."""
    interrupt = Interrupt(n, files)
    sys.settrace(interrupt)
    try:
        act()
    except KeyboardInterrupt as error:
        assert type(error) is Strike
        return interrupt
    finally:
        sys.settrace(None)
    assert interrupt.seen < n, f"the interrupt at {interrupt.at} was swallowed"
    return None


def moments(act: Callable[[], object], files: tuple[str, ...]) -> list[int]:
    """When to strike: the first time that each line of these files is run, or every time."""
    interrupt = Interrupt(0, files)
    sys.settrace(interrupt)
    try:
        act()
    finally:
        sys.settrace(None)
    numbered = list(enumerate(interrupt.lines, start=1))
    first = {line: n for n, line in reversed(numbered)}
    return [n for n, _ in numbered] if THOROUGH else sorted(first.values())


def check_truth(model: nn.Module, before: State, where: object) -> None:
    """What `active` leaves out is not there; one `undo_all` is enough for what it names."""
    torch.set_grad_enabled(True)  # torch's own blocks, which an analysis uses, are left by an interrupt in the same way
    if surgery.active(model) or _in_use:
        surgery.undo_all(model)
    assert (surgery.active(model), editor_of(model).is_idle, _in_use) == ((), True, {}), where
    before.assert_unchanged(model)


def apply_in_a_block(model: nn.Module) -> None:
    with surgery.apply(model, {**SPEC, **CONSTANT}, progress=False):
        pass


def apply_over_another(model: nn.Module) -> None:
    first = surgery.apply(model, SPEC, progress=False)
    with surgery.apply(model, OVER, progress=False):
        first.undo()


def commit_under_an_edit(model: nn.Module) -> None:
    with surgery.apply(model, OVER, progress=False), surgery.commit(model, SPEC, progress=False):
        pass


EDITING = (apply_in_a_block, apply_over_another, commit_under_an_edit)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("act", EDITING)
def test_an_interrupt_at_any_line_that_changes_a_model_can_be_undone(kind: str, act: Callable) -> None:
    with borrowed(kind) as model:
        act(model)  # decomposes
        before, when = State(model), moments(lambda: act(model), CHANGES_A_MODEL)
        for n in when:
            interrupt = struck(lambda: act(model), n, CHANGES_A_MODEL)
            assert interrupt is not None
            if act is not apply_over_another and not interrupt.out_of_reach:
                assert not surgery.active(model), interrupt.at
            check_truth(model, before, interrupt.at)
        assert len(when) > 60


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("written", [False, True])
def test_an_interrupted_undo_is_finished_before_the_interrupt_goes_on(kind: str, written: bool) -> None:
    put = surgery.commit if written else surgery.apply
    with borrowed(kind) as model:
        before = State(model)
        operation = put(model, SPEC, progress=False)
        for n in moments(operation.undo, CHANGES_A_MODEL)[1:]:  # `try:` itself is not in the block yet
            operation = put(model, SPEC, progress=False)
            assert struck(operation.undo, n, CHANGES_A_MODEL) is not None
            before.assert_unchanged(model)
            assert (surgery.active(model), operation.is_active) == ((), False)
            operation.undo()
            before.assert_unchanged(model)


ANALYSES: dict[str, Callable[[nn.Module], object]] = {
    "gradient": lambda m: attribution.by_gradient(m, tokens(), METRIC, "blocks.*.mlp.W_out", progress=False),
    "ablation": lambda m: attribution.by_ablation(m, tokens(), METRIC, {"blocks.0.attn.W_O": [0]}, progress=False),
    "curvature": lambda m: attribution.by_curvature(m, tokens(), METRIC, "blocks.1.attn.W_K", draws=2, progress=False),
    "path": lambda m: attribution.by_path(m, tokens(), METRIC, PAIR, steps=1, max_steps=1, progress=False),
    "shapley": lambda m: attribution.by_shapley(m, tokens(), METRIC, PAIR, draws=2, progress=False),
    "patching": lambda m: patching.by_component(m, tokens(), tokens().flip(0), METRIC, {"blocks.0.mlp.W_out": [0]},
                                                progress=False),
    "hooks": lambda m: m.run_with_hooks(tokens(), fwd_hooks=surgery.fwd_hooks(m, OVER, progress=False)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("gradient", "hooks") else pytest.mark.long) for name in ANALYSES]
)
def test_an_interrupted_analysis_leaves_nothing_on_the_model(kind: str, name: str) -> None:
    files = ("hooks/temporary.py", "hooks/recording.py", "hooks/running.py", "hooks/places.py")
    with borrowed(kind) as model:
        ANALYSES[name](model)
        before, when, left = State(model), moments(lambda: ANALYSES[name](model), files), 0
        if not THOROUGH:  # the one host every second line, the other those between
            when = when[kind.startswith("bridge") :: 2]
        for n in when:
            interrupt = struck(lambda: ANALYSES[name](model), n, files)
            assert interrupt is not None
            left += bool(_in_use)
            check_truth(model, before, interrupt.at)
        assert left <= len(when) // 5  # on the way out of a block, before its `__exit__` runs


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_an_interrupt_before_the_first_line_of_exit_is_repaired_by_undo_all(kind: str) -> None:
    with borrowed(kind) as model:
        before = State(model)
        layers = range(2)
        with recorded(model, layers) as recording, torch.no_grad():
            model(tokens())
        site = hooks.Site(1, "W_out")

        def act() -> None:
            with replayed(model, recording, site, torch.arange(2)):
                pass

        left = 0
        for n in range(1, 200):
            interrupt = struck(act, n, ("hooks/temporary.py",))
            if interrupt is None:
                break
            left += interrupt.out_of_reach and bool(_in_use)
            check_truth(model, before, interrupt.at)
        assert left > 0


@contextmanager
def alarm_in(seconds: float):
    """A real signal after so long, that interrupts as Ctrl-C does."""
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_signals_at_random_times_leave_nothing_that_undo_all_does_not_repair(kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    with borrowed(kind) as model:
        apply_in_a_block(model)
        before, interrupted = State(model), 0
        for _ in range(2000 if THOROUGH else 50):
            try:
                with alarm_in(1e-4 + 0.012 * float(torch.rand((), generator=draw))):
                    for _ in range(10):
                        apply_in_a_block(model)
            except KeyboardInterrupt:
                interrupted += 1
            check_truth(model, before, "a signal")
        assert interrupted > (500 if THOROUGH else 15)
