"""Work handed to engines: equal to the last bit, refused where it would be wrong, and never lost once finished."""

import ast
import json
import pickle
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import models
import mortal
import pandas as pd
import pytest
import torch
from asked_models import borrowed
from torch import nn

import surgery
from analyses import attribution, engines, laser, metrics, scoring, truncation
from analyses.engines import Work, WorkerError, Workers, _worker, carry_out
from analyses.engines._dispatch import Dispatch
from analyses.engines.work import _jobs
from analyses.laser._resume import LogError
from analyses.tasks import AnswerItem, Splits, Task
from surgery import DropTop

KIND = "bridge gpt2"
LOAD = engines.Loader(models.build, KIND)
RHOS = (0.8, 0.3, 0.1)
QUIET = {"progress": False}
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")


def parts(seed: int = 0) -> Splits:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(models.D_VOCAB, (24, 9), generator=generator).tolist()
    items = tuple(AnswerItem(tuple(row[: 3 + n % 5]), ((row[8],),)) for n, row in enumerate(rows))
    return Task("noise", items).split(screen=0.25, validation=0.5, test=0.25, seed=1)


class Elsewhere:
    """A pool whose worker is this process, which takes itself for another; `at(n)` may break in before the nth job."""

    def __init__(self, at: Callable[[int], object] = lambda n: None) -> None:
        self.at, self.n = at, 0

    def submit(self, fn: Callable[..., object], /, job: _worker.Job) -> Future:
        future: Future = Future()
        try:
            self.at(self.n)
            future.set_result(fn(replace(pickle.loads(pickle.dumps(job)), sender=("another", 0))))
        except BrokenProcessPool as error:
            future.set_exception(error)
        self.n += 1
        return future


def breaking(at: int) -> Elsewhere:
    def broken(n: int) -> None:
        if n >= at:
            raise BrokenProcessPool("a process was terminated abruptly")

    return Elsewhere(broken)


def search(executor: engines.Executor = None, **changed: object) -> laser.SearchResult:
    with borrowed(KIND) as model:
        return laser.search(model, parts(), executor=executor, **{"rhos": RHOS, **QUIET, **changed})


@cache
def whole(strategy: str = "exhaustive") -> laser.SearchResult:
    """The search without workers."""
    return search(strategy=strategy)


def assert_same(one: laser.SearchResult, other: laser.SearchResult) -> None:
    """To the last bit."""
    pd.testing.assert_frame_equal(one.to_dataframe(), other.to_dataframe(), check_exact=True)
    for a, b in zip((one.unedited, *one.trials), (other.unedited, *other.trials), strict=True):
        assert torch.equal(a.outcome.readings.log_prob, b.outcome.readings.log_prob)
    assert repr(one) == repr(other)


def keys(log: Path) -> list[str]:
    return [json.loads(line)["key"] for line in log.read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.fixture(params=["here", "processes"])
def workers(request: pytest.FixtureRequest) -> Workers:
    """Workers that take themselves for other processes, and workers that are."""
    return Workers(Elsewhere() if request.param == "here" else request.getfixturevalue("pool"), LOAD)


@pytest.mark.parametrize("strategy", ["exhaustive", pytest.param("screened", marks=pytest.mark.long)])
def test_a_search_by_workers_is_the_search_to_the_last_bit(workers: Workers, strategy: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert_same(search(workers, strategy=strategy, log=log), whole(strategy))
    assert len(keys(log)) == len(set(keys(log))) >= len(whole(strategy).trials)
    assert_same(search(strategy=strategy, log=log), whole(strategy))


def test_a_search_is_the_same_where_recordings_do_not_fit() -> None:
    sites = ["blocks.*.mlp.W_*", "blocks.*.attn.W_[QO]"]
    little = {"sites": sites, "memory": 40_000, "rhos": (0.5,), "rule": metrics.logit_difference(3, 5)}
    assert_same(search(Workers(Elsewhere(), LOAD), **little), search(**little))


def test_a_rule_that_generates_and_edits_of_ones_own_reach_the_workers(tmp_path: Path) -> None:
    made = {"rule": scoring.StartsWith(), "edits": (*mortal.fragile(tmp_path / "empty", 0), DropTop(rank=1))}
    assert_same(search(Workers(Elsewhere(), LOAD), **made), search(**made))


def test_a_rank_curve_and_its_controls_are_the_same(workers: Workers) -> None:
    site = "blocks.1.mlp.W_out"
    with borrowed(KIND) as model:
        curves = [laser.rank_curve(model, parts().test, site, executor=one, **QUIET) for one in (None, workers)]
        edit = {site: DropTop(rank=3)}
        drawn = [
            laser.random_controls(model, parts().test, edit, draws=2, executor=one, **QUIET) for one in (None, workers)
        ]
    for one, other in (curves, drawn):
        pd.testing.assert_frame_equal(one.to_dataframe(), other.to_dataframe(), check_exact=True)


@pytest.mark.parametrize(
    "replacement", ["zero", *(pytest.param(name, marks=pytest.mark.long) for name in ("mean", "resample"))]
)
def test_an_ablation_by_workers_is_the_ablation_to_the_last_bit(workers: Workers, replacement: str) -> None:
    tokens = models.tokens(5, 7)
    asked = {"replacement": replacement, "batch_size": 40, "seed": 3, **QUIET}
    with borrowed(KIND) as model:
        here, there = (
            attribution.by_ablation(
                model, tokens, mortal.twice_as_much, ["blocks.*.mlp.W_*", "blocks.1.attn.W_Q[1]"], executor=one, **asked
            )
            for one in (None, workers)
        )
    same_effects(here, there)


def same_effects(here: attribution.Effects, there: attribution.Effects) -> None:
    assert here.sites == there.sites and here.passes == there.passes
    assert torch.equal(here.measure.baseline, there.measure.baseline)
    assert all(torch.equal(here.examples[site], there.examples[site]) for site in here.sites)


def test_an_ablation_of_a_task_and_a_selection_is_the_same() -> None:
    items, margin, workers = parts().test, metrics.log_prob(), Workers(Elsewhere(), LOAD)
    with borrowed(KIND) as model:
        top = attribution.by_gradient(model, items, margin, **QUIET).top(6)
        ablated = partial(attribution.by_ablation, model, items, margin, top, replacement="mean", **QUIET)
        same_effects(ablated(), ablated(executor=workers))


def test_shapley_shares_by_workers_are_the_same(workers: Workers) -> None:
    spec = {"blocks.*.mlp.W_out": surgery.Drop([0, 1, 2])}
    with borrowed(KIND) as model:
        asked = partial(
            attribution.by_shapley, model, models.tokens(), metrics.logit(3), spec, draws=6, batch_size=8, **QUIET
        )
        here, there = asked(), asked(executor=workers)
    same_effects(here, there)
    assert all(torch.equal(here.noise[site], there.noise[site]) for site in here.sites)
    assert torch.equal(here.change, there.change)


def test_a_sweep_over_checkpoints_by_workers_is_the_same(workers: Workers) -> None:
    steps = {10: LOAD, 0: engines.Loader(mortal.edited, KIND)}
    asked = {"track": {"correct": 1, "generic": 2}, "rhos": (0.5,), **QUIET}
    swept = [
        truncation.sweep(steps, models.tokens(), "blocks.1.mlp.W_*", executor=one, **asked)
        for one in (None, Workers(workers.pool))
    ]
    pd.testing.assert_frame_equal(swept[0].frame, swept[1].frame, check_exact=True)
    assert swept[0].steps == (0, 10)


def test_a_sweep_sends_no_models() -> None:
    asked, pool = {"track": {"correct": 1}, **QUIET}, Elsewhere()
    alone, workers = Workers(pool), Workers(pool, LOAD)
    with pytest.raises(ValueError, match=r"checkpoint 3 is a function, .* give engines\.Loader\(function, arguments\)"):
        truncation.sweep({3: mortal.edited}, models.tokens(), "W_out", executor=alone, **asked)
    with pytest.raises(ValueError, match=r"Loader\('models:build', 'bridge gpt2'\) is not used"):
        truncation.sweep({3: LOAD}, models.tokens(), "W_out", executor=workers, **asked)


def test_threads_of_this_process_are_refused() -> None:
    with ThreadPoolExecutor(2) as threads, pytest.raises(WorkerError, match=r"to a thread of this process: .*'spawn'"):
        search(Workers(threads, LOAD))


@dataclass(frozen=True)
class Doubling(Work[int, int]):
    """Work that needs no model."""

    factor: int = 2

    def on(self, model: nn.Module) -> Callable[[int], list[int]]:
        return lambda n: [self.factor * n]


def job_of(number: int, **changed: object) -> _worker.Job:
    job = _jobs(Doubling(), {number: number}, None, {number: LOAD})[number]
    return replace(job, **changed)


def test_forked_workers_and_two_threads_of_one_worker_are_refused() -> None:
    forked = _worker.answer(job_of(1, sender=(_worker.PROCESS, -1)))
    assert isinstance(forked, _worker.Refused) and "was forked from this process" in forked.why
    there = job_of(1, sender=("another", 0))
    with _worker._at_work:
        second = _worker.answer(there)
    assert isinstance(second, _worker.Refused) and "two pieces at a time" in second.why
    alone = _worker.answer(there)
    assert isinstance(alone, _worker.Done) and pickle.loads(alone.found) == (2,)


@pytest.mark.parametrize(
    ("load", "what"),
    [
        (engines.Loader(models.build, KIND, dtype=torch.bfloat16), "weights or edits in force, dtype"),
        (engines.Loader(models.bridge, "neox"), "weights or edits in force, default_prepend_bos"),
        (engines.Loader(models.build, f"{KIND} compatible"), "weights or edits in force, weight state"),
        (engines.Loader(mortal.edited, KIND), "weights or edits in force"),
    ],
)
def test_a_worker_with_another_model_is_refused(load: engines.Loader, what: str) -> None:
    with pytest.raises(WorkerError, match=rf"that Loader\('m.*it differs in {what}\. Load the same checkpoint"):
        search(Workers(Elsewhere(), load))


def test_a_worker_that_has_swept_a_checkpoint_may_be_asked_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "_models", {})
    asked, pool = (models.tokens(), "blocks.1.mlp.W_out"), Elsewhere()
    truncation.sweep({3: LOAD}, *asked, track={"correct": 1}, executor=Workers(pool), **QUIET)
    with borrowed(KIND) as model:
        tokens, site = asked
        attribution.by_ablation(model, tokens, metrics.logit(3), site, executor=Workers(pool, LOAD), **QUIET)


def test_a_worker_may_have_the_same_edits_in_force() -> None:
    model, load = mortal.edited(KIND), engines.Loader(mortal.edited, KIND)
    here, there = (
        laser.search(model, parts(), "W_out", rhos=(0.3,), executor=one, **QUIET)
        for one in (None, Workers(Elsewhere(), load))
    )
    assert_same(here, there)
    with pytest.raises(WorkerError, match="weights or edits in force"):
        laser.search(model, parts(), "W_out", rhos=(0.3,), executor=Workers(Elsewhere(), LOAD), **QUIET)


def twice(model: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    return mortal.twice_as_much(logits)


def test_what_is_sent_is_small_and_holds_no_model() -> None:
    with borrowed(KIND) as model:
        size = sum(parameter.nbytes for parameter in model.parameters())
        workers, reference = (
            Workers(Elsewhere(), LOAD),
            metrics.custom(partial(twice, model), name="twice", unit="", higher_is_better=None),
        )
        with pytest.raises(ValueError, match=r"what is asked cannot be sent .*: it holds a .*, and models are not"):
            attribution.by_ablation(model, models.tokens(), reference, executor=workers, **QUIET)
        with pytest.raises(ValueError, match=r"what is asked cannot be sent .* not of a lambda"):
            attribution.by_ablation(model, models.tokens(), lambda logits: logits[:, -1, 0], executor=workers, **QUIET)
        sent: list[int] = []
        pool = Elsewhere()
        submit = pool.submit
        pool.submit = lambda fn, job: [sent.append(len(pickle.dumps(job))), submit(fn, job)][1]  # type: ignore[method-assign]
        laser.search(model, parts(), executor=Workers(pool, LOAD), **QUIET)
    assert len(sent) == 8 and max(sent) < 6000 < size


def test_what_cannot_be_done_by_workers_is_refused() -> None:
    with borrowed(KIND) as model:
        svds, workers = surgery.decompose(model, "W_out", progress=False), Workers(Elsewhere(), LOAD)
        for call in (
            lambda: laser.search(model, parts(), svds=svds, executor=workers, **QUIET),
            lambda: attribution.by_ablation(
                model, models.tokens(), metrics.logit(3), svds=svds, executor=workers, **QUIET
            ),
        ):
            with pytest.raises(ValueError, match=r"svds= stays in this process, .* leave out one of both"):
                call()
        with pytest.raises(ValueError, match=r"does not say how a worker gets the model: give Workers\(pool, Loader"):
            laser.search(model, parts(), executor=Workers(Elsewhere()), **QUIET)
        model.add_hook("blocks.0.hook_resid_post", lambda value, hook: value)
        try:
            with pytest.raises(ValueError, match=r"the model has hooks, which workers do not have: remove them"):
                laser.search(model, parts(), executor=workers, **QUIET)
        finally:
            model.reset_hooks()
    with pytest.raises(TypeError, match=r"pool=3 has no submit\(\): give an executor|parameter 'pool'"):
        Workers(3, LOAD)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="retries=-1"):
        Workers(Elsewhere(), LOAD, retries=-1)


def test_a_loader_names_an_importable_function() -> None:
    assert repr(LOAD) == "Loader('models:build', 'bridge gpt2')"
    for function in (lambda: None, partial(models.build, KIND), KIND):
        with pytest.raises(ValueError, match=r"Loader\(.*(there is no importable function|names no function)"):
            engines.Loader(function)  # type: ignore[arg-type]
    with pytest.raises(WorkerError, match=r"cannot be imported in a worker \(No module named 'no_such'\)"):
        search(Workers(Elsewhere(), engines.Loader("no_such:load")))
    with pytest.raises(WorkerError, match=r"Loader\('mortal:none'\) returned None, which is no model"):
        search(Workers(Elsewhere(), engines.Loader(mortal.none)))


def test_a_piece_that_fails_is_tried_again(tmp_path: Path) -> None:
    there = search(Workers(Elsewhere(), LOAD, retries=2), edits=mortal.fragile(tmp_path / "two", 2))
    for one, other in zip(whole().trials, there.trials, strict=True):
        assert torch.equal(one.outcome.readings.log_prob, other.outcome.readings.log_prob)
    assert list((tmp_path / "two").iterdir()) == []


def test_a_piece_that_fails_too_often_is_told_when_all_others_are_finished(tmp_path: Path) -> None:
    log, edits = tmp_path / "log", mortal.fragile(tmp_path / "folder", 3)
    with pytest.raises(WorkerError, match=r"1 of 4 pieces failed, 2 times each, the first with RuntimeError: no luck"):
        search(Workers(Elsewhere(), LOAD, retries=1), edits=edits, log=log)
    finished = keys(log)
    assert len([key for key in finished if "Fragile" in key]) == 9
    assert_same(search(edits=edits, log=log), search(edits=edits))


def test_a_pool_that_breaks_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(WorkerError, match=r"the pool broke \(BrokenProcessPool: .* 2 of 4 pieces had been finished"):
        search(Workers(breaking(2), LOAD), log=log)
    assert len(keys(log)) == 2 * 3 + 1
    rest = Elsewhere()
    assert_same(search(Workers(rest, LOAD), log=log), whole())
    assert rest.n == 2


def test_what_was_finished_when_a_pool_takes_no_more_is_kept(tmp_path: Path) -> None:
    class Closing(Elsewhere):
        def submit(self, fn: Callable[..., object], /, job: _worker.Job) -> Future:
            if self.n == 3:
                raise BrokenProcessPool("it takes no more")
            return super().submit(fn, job)

    with pytest.raises(WorkerError, match="3 of 4 pieces had been finished"):
        search(Workers(Closing(), LOAD), log=tmp_path / "log")
    assert len(keys(tmp_path / "log")) == 3 * 3 + 1


def test_broken_pools_are_replaced_as_long_as_pieces_get_finished() -> None:
    pools = iter([breaking(1), breaking(0), breaking(2), Elsewhere()])
    made: list[Elsewhere] = []

    def make() -> Elsewhere:
        made.append(next(pools))
        made[-1].shutdown = lambda wait: None  # type: ignore[attr-defined]
        return made[-1]

    assert_same(search(Workers(make, LOAD)), whole())
    assert len(made) == 4
    pools = iter([breaking(1), breaking(0), breaking(0), Elsewhere()])
    with pytest.raises(WorkerError, match="1 of 4 pieces had been finished"):
        search(Workers(make, LOAD))


@pytest.mark.long
def test_killed_processes_lose_nothing_and_are_replaced(tmp_path: Path) -> None:
    context = get_context("forkserver")
    context.set_forkserver_preload(["models", "mortal", "analyses.laser"])
    make = partial(ProcessPoolExecutor, 2, mp_context=context)
    log, edits = tmp_path / "log", mortal.fragile(tmp_path / "folder", 1, kills=True)
    with (
        make() as pool,
        pytest.raises(WorkerError, match=r"the pool broke \(BrokenProcessPool: .* of 4 pieces had been"),
    ):
        search(Workers(pool, LOAD), edits=edits, log=log)
    done = keys(log)
    (tmp_path / "folder" / "again").touch()
    found = search(Workers(make, LOAD), edits=edits, log=log)
    assert keys(log)[: len(done)] == done and len(keys(log)) == len(set(keys(log)))
    assert list((tmp_path / "folder").iterdir()) == []
    assert_same(found, search(edits=edits))


def test_an_interrupt_takes_back_what_has_not_begun() -> None:
    futures = [Future() for _ in range(4)]
    futures[2].set_result(_worker.Done(pickle.dumps((7,))))

    class Pool:
        def submit(self, fn: Callable[..., object], /, *args: object) -> Future:
            return next(handed)

    handed = iter(futures)

    def interrupted(found: int) -> None:
        raise KeyboardInterrupt

    jobs = {n: job_of(n) for n in range(4)}
    with pytest.raises(KeyboardInterrupt):
        Dispatch(Workers(Pool()), jobs, interrupted).run()  # type: ignore[arg-type]
    assert [future.cancelled() for future in futures] == [True, True, False, True]


class Slow:
    """A result as engines have it that are no executors; it is ready when it was asked twice."""

    def __init__(self, value: object) -> None:
        self.value, self.asked = value, 0

    def done(self) -> bool:
        self.asked += 1
        return self.asked > 2

    def result(self) -> object:
        assert self.asked > 2
        return self.value


class Plain:
    """A result that only has `result()`."""

    def __init__(self, value: object) -> None:
        self.value = value

    def result(self) -> object:
        return self.value


@pytest.mark.parametrize("kind", [Slow, Plain])
def test_results_need_no_more_than_result(kind: type) -> None:
    class Pool:
        def submit(self, fn: Callable[..., object], /, job: _worker.Job) -> object:
            return kind(fn(replace(job, sender=("another", 0))))

    found: list[int] = []
    here = Doubling().on(nn.Identity())
    asked = {"here": here, "executor": Workers(Pool()), "model": dict.fromkeys(range(5), LOAD)}  # type: ignore[arg-type]
    carry_out(Doubling(), {n: n for n in range(5)}, found.append, **asked)
    assert sorted(found) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("strategy", ["exhaustive", "screened"])
def test_parts_and_their_joined_logs_give_the_whole_search(tmp_path: Path, strategy: str) -> None:
    with borrowed(KIND) as model:
        call = partial(laser.search, model, parts(), rhos=RHOS, strategy=strategy, **QUIET)
        joined = tmp_path / "all.jsonl"
        found, rounds = None, 0
        while found is None:
            logs = [tmp_path / f"part-{n}.jsonl" for n in range(3)]
            for n, log in enumerate(logs):
                if joined.exists():
                    laser.join_logs([joined], into=log)
                found = engines.run_part(call, part=(n, 3), log=log)
            laser.join_logs(logs, into=joined)
            rounds += 1
        assert_same(found, whole(strategy))
        assert_same(call(log=joined), whole(strategy))
        assert rounds == 2 if strategy == "exhaustive" else rounds > 2
        shares = [len([key for key in keys(log) if "mlp" in key]) for log in logs]
    assert min(shares) > 0


def test_the_parts_of_a_search_have_nothing_in_common(tmp_path: Path) -> None:
    with borrowed(KIND) as model:
        call = partial(laser.search, model, parts(), rhos=RHOS, **QUIET)
        logs = [tmp_path / f"{n}" for n in range(2)]
        assert [engines.run_part(call, part=(n, 2), log=log) for n, log in enumerate(logs)] == [None, None]
        mine, others = ({key for key in keys(log) if "mlp" in key} for log in logs)
        assert not mine & others and len(mine | others) == 12
        assert engines.run_part(call, part=(0, 1), log=tmp_path / "one").spec == whole().spec
        with pytest.raises(ValueError, match="the number of this part=2: give a whole number, from 0 to 1"):
            engines.run_part(call, part=(2, 2), log=logs[0])


def test_logs_of_other_searches_are_not_joined(tmp_path: Path) -> None:
    for name, rhos in {"one": RHOS, "other": (0.5,)}.items():
        search(log=tmp_path / name, rhos=rhos)
    before = (tmp_path / "one").read_bytes()
    with pytest.raises(LogError, match="other is the log of another search, which differs in candidates"):
        laser.join_logs([tmp_path / "one", tmp_path / "other"], into=tmp_path / "all")
    with pytest.raises(LogError, match="no logs were given"):
        laser.join_logs([], into=tmp_path / "all")
    assert not (tmp_path / "all").exists()
    (tmp_path / "cut").write_bytes(before[:-9])
    laser.join_logs([tmp_path / "cut", tmp_path / "one"], into=tmp_path / "all")
    assert keys(tmp_path / "all") == keys(tmp_path / "one")
    assert (tmp_path / "cut").read_bytes() == before[:-9]


def test_loky_is_an_engine() -> None:
    loky = pytest.importorskip("loky")
    pool = loky.get_reusable_executor(max_workers=2)
    try:
        assert_same(search(Workers(pool, LOAD)), whole())
    finally:
        pool.shutdown()


def test_dask_is_an_engine() -> None:
    distributed = pytest.importorskip("distributed")
    local = partial(distributed.LocalCluster, n_workers=2, processes=True, dashboard_address=None)
    with local(threads_per_worker=1) as cluster, distributed.Client(cluster) as client:
        assert_same(search(Workers(client.get_executor(pure=False), LOAD)), whole())


def test_the_lines_on_the_page_are_python_and_name_what_there_is() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "engines":
                assert node.attr in engines.__all__
    defined = {node.name for block in blocks for node in ast.parse(block).body if isinstance(node, ast.ClassDef)}
    assert defined == {"RayPool", "RayResult"}
