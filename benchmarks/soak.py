"""An attack on editing that goes on for as long as you like: random edits and undos, threads, interrupts.

python benchmarks/soak.py [--minutes 1] [--seed 0] [--host bridge]

Three kinds of turn, drawn at random. *Edits*: random operations in any order, each matrix compared with the singular
value decomposition of the raw weight by numpy. *Threads*: four of them edit the same model at once. *Interrupts*: a
real signal at a random time in `with surgery.apply(...)`. After each turn one `undo_all` has to give every parameter
back bit for bit, and while `active` names nothing the model has to be as it was. Ends with exit status 1 if anything
was wrong.
"""

import argparse
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic

import numpy as np
import table
import torch
from torch import Tensor, nn

import surgery
from hooks import place_of
from surgery import Drop, Edit, Keep, KeepTop, Scale, Zero

LAYERS, D_MODEL, RANK = 2, 16, 16
TOKENS = torch.arange(8).reshape(2, 4)


class Wrong(AssertionError):
    """The model is not as it should be."""


class Before:
    """A model as it was, to the last bit."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.logits = self._run()
        self.attributes = self._attributes()

    def check(self, where: str) -> None:
        now = self.model.state_dict()
        if any(not torch.equal(value, now[name]) for name, value in self.weights.items()):
            raise Wrong(f"{where}: a parameter has changed")
        if not torch.equal(self._run(), self.logits):
            raise Wrong(f"{where}: the model computes something else")
        if self._attributes() != self.attributes:
            raise Wrong(f"{where}: an attribute or a hook was left behind")

    def _run(self) -> Tensor:
        with torch.no_grad():
            return self.model(TOKENS.to(next(self.model.parameters()).device))

    def _attributes(self) -> list[tuple]:
        return [
            (sorted(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in self.model.modules()
        ]


def random_model(host: str, device: str) -> nn.Module:
    """A small model with random weights."""
    if host == "hooked":
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        cfg = HookedTransformerConfig(
            n_layers=LAYERS,
            d_model=D_MODEL,
            n_heads=2,
            d_head=8,
            n_ctx=8,
            d_vocab=20,
            act_fn="gelu",
            seed=0,
            device=device,
        )
        return HookedTransformer(cfg).eval()
    import transformers
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=D_MODEL, n_layer=LAYERS, n_head=2, vocab_size=20, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).eval()
    nn.Module.to(model, device)
    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def random_edit(draw: random.Random) -> tuple[Edit, np.ndarray]:
    """An edit, and the gains that it means."""
    gains, i, k = np.ones(RANK), draw.randrange(RANK), draw.randrange(RANK + 1)
    match draw.randrange(5):
        case 0:
            gains[k:] = 0
            return KeepTop(rank=k), gains
        case 1:
            gains[i] = 0
            return Drop([i]), gains
        case 2:
            return Keep([i]), np.eye(RANK)[i]
        case 3:
            gains[i] = draw.random() * 2
            return Scale({i: float(gains[i])}), gains
        case _:
            return Zero(), 0 * gains


def edits(model: nn.Module, sites: list[str], draw: random.Random) -> int:
    """Operations put in force and taken back in any order; each matrix against numpy's decomposition."""
    raw = {site: place_of(model, site).matrix().double().cpu().numpy().copy() for site in sites}
    parts = {site: np.linalg.svd(W, full_matrices=False) for site, W in raw.items()}
    live: list[tuple[surgery.Operation, str, np.ndarray]] = []
    for _ in range(12):
        if live and draw.random() < 0.4:
            live.pop(draw.randrange(len(live)))[0].undo()
        else:
            site, (edit, gains) = draw.choice(sites), random_edit(draw)
            act = surgery.commit if draw.random() < 0.3 else surgery.apply
            live.append((act(model, {site: edit}, progress=False), site, gains))
        site = draw.choice(sites)
        U, S, Vh = parts[site]
        expected = U * (S * np.prod([g for _, there, g in live if there == site], axis=0)) @ Vh
        if live and not np.allclose(live[0][0].weight(site).double().cpu().numpy(), expected, atol=1e-5):
            raise Wrong(f"{site} is not what its {len(live)} operations make of it")
        if surgery.active(model) != tuple(operation for operation, _, _ in live):
            raise Wrong("active() names other operations than are in force")
    return 12


def threads(model: nn.Module, sites: list[str], draw: random.Random) -> int:
    """Four threads that edit one model at once."""
    failures: list[str] = []

    def run(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(10):
            site, (edit, _) = mine.choice(sites), random_edit(mine)
            with surgery.apply(model, {site: edit}, progress=False) as operation:
                if not operation.is_active:
                    failures.append("an operation was lost")

    workers = [threading.Thread(target=run, args=(draw.randrange(2**32),), daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        if worker.is_alive():
            raise Wrong("a thread hangs")
    if failures or surgery.active(model):
        raise Wrong(failures[0] if failures else "an operation is in force after its block")
    return 40


def interrupts(model: nn.Module, sites: list[str], draw: random.Random, before: Before, seen: Counter) -> int:
    """Real signals at random times in a block; what is left behind is counted, and has to be what `active` names."""
    spec = {site: KeepTop(rank=3) for site in sites}
    for _ in range(20):
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-4 + 0.03 * draw.random())
            for _ in range(5):
                with surgery.apply(model, spec, progress=False):
                    pass
        except KeyboardInterrupt:
            seen["interrupts"] += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        if surgery.active(model):
            seen["left in force between apply and its block, and undone by undo_all"] += 1
            surgery.undo_all(model)
        before.check("after an interrupt")
    return 20


def soak(minutes: float, seed: int, host: str, device: str = "cpu") -> Counter:
    """Turns until the time is over: what happened how often.

    Raises:
        Wrong: at the first thing that is.
    """
    model, draw, seen = random_model(host, device), random.Random(seed), Counter()
    sites = surgery.sites(model)
    with surgery.apply(model, {}):
        pass
    before, end = Before(model), monotonic() + 60 * minutes
    turns: dict[str, Callable[[], int]] = {
        "operations": lambda: edits(model, sites, draw),
        "edits from threads": lambda: threads(model, sites, draw),
        "blocks under fire": lambda: interrupts(model, sites, draw, before, seen),
    }
    while monotonic() < end or not all(seen[name] for name in turns):
        name = draw.choice(list(turns))
        seen[name] += turns[name]()
        surgery.undo_all(model)
        before.check(f"after {name}")
    return seen


def main(argv: list[str] | None = None) -> None:
    """Runs the attack and prints what it saw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--host", choices=("bridge", "hooked"), default="bridge")
    parser.add_argument("--quick", action="store_true", help="a second, for a first look")
    table.flags(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with table.recorded(__file__, args):
        table.section("Turns", f"{args.host}, seed {args.seed}")
        seen = soak(1 / 60 if args.quick else args.minutes, args.seed, args.host, args.device)
        for name, count in seen.items():
            table.figure(name, count, "times")
        print("  nothing wrong, nothing left behind after undo_all")


if __name__ == "__main__":
    main()
