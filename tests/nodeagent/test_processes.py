from __future__ import annotations

import os
import subprocess

from hami.nodeagent import processes
from hami.nodeagent.processes import INITIAL_NAMESPACE, Living


def own_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def test_living_process_is_not_dead() -> None:
    living = processes.look()

    assert living.own_namespace == own_namespace()
    assert not living.is_dead(own_namespace(), os.getpid())


def test_ended_process_of_a_visible_namespace_is_dead() -> None:
    process = subprocess.Popen(["true"])
    process.wait()

    assert processes.look().is_dead(own_namespace(), process.pid)


def test_process_of_a_hidden_namespace_is_taken_to_be_alive() -> None:
    living = Living(own_namespace=7, processes=frozenset({(7, 1), (8, 1)}))

    assert not living.is_dead(9, 1)
    assert living.is_dead(8, 2)
    assert living.is_dead(7, 2)


def test_where_everything_is_visible_a_vanished_namespace_is_dead() -> None:
    living = Living(own_namespace=INITIAL_NAMESPACE, processes=frozenset({(INITIAL_NAMESPACE, 1)}))

    assert living.is_dead(9, 1)


def test_process_without_a_name_is_taken_to_be_alive() -> None:
    living = Living(own_namespace=INITIAL_NAMESPACE, processes=frozenset())

    assert not living.is_dead(0, 1)
    assert not living.is_dead(9, 0)
