"""Training steps whose rows run in parts (`loop.accumulate`), beside the same steps in one piece."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from codebrush.training.engine.loop import Loop
from codebrush.training.run_stage import make_network, make_task
from codebrush.training.stage import Materials, StagePlan


def check_parts(plan: StagePlan, materials: Materials, folder: Path, parts: int) -> list[dict[str, Any]]:
    """Check that steps in parts have the weights of those in one piece, up to rounding; returns the batches of the
    parts."""
    loop = replace(plan.loop, steps=2, precision="32-true", accelerator="cpu", preview_every=0, clip_norm=0.0)
    found, seen = [], []
    for accumulate in (1, parts):
        seen.clear()
        task = make_task(plan, materials, make_network(plan, materials))
        (name, network), *_ = task.networks.items()
        task.optimizers[name] = torch.optim.SGD(network.parameters(), lr=0.1)  # Adam divides rounding by itself
        objectives = task.objectives
        task.objectives = lambda batch, step, own=objectives: seen.append(batch) or own(batch, step)  # pyright: ignore
        (folder / str(accumulate)).mkdir(parents=True)
        Loop(task, replace(loop, accumulate=accumulate), folder / str(accumulate)).run()
        found.append({key: value.detach().clone() for key, value in network.state_dict().items()})
    assert len(seen) == loop.steps * parts
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    return seen
